"""What a role brings to a text besides weights: template, end tokens, length limit.

In self-distillation both roles share one speaker. A teacher that is another model has its own, and renders its own
prompts: a student's limit or template never reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engine.rendering import Renderer, stop_ids
from workbench.errors import InputError


@dataclass(frozen=True)
class Speaker:
    """How one model is spoken to, and how it ends."""

    renderer: Renderer
    stop_ids: frozenset[int]
    """Every id that ends a completion of this model."""
    end_of_turn: int | None
    """The one its chat template closes an assistant's turn with; None when the template closes it otherwise."""
    max_length: int
    """Prompt and completion together, in tokens."""

    @classmethod
    def make(cls, tokenizer: Any, stops: frozenset[int], max_length: int, source: str) -> Speaker:
        """From its parts. Raises InputError for a model that cannot end."""
        if not stops:
            raise InputError(
                f"'{source}' names no end token, so no completion could end. Set eos_token_id in its config."
            )
        renderer = Renderer(tokenizer)
        return cls(renderer, stops, renderer.end_of_turn(stops), max_length)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, source: str) -> Speaker:
        """Of a loaded model. Raises InputError for one that cannot end."""
        config = model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        limit = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
        return cls.make(tokenizer, stop_ids(model, tokenizer), limit, source)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer whose template this is."""
        return self.renderer.tokenizer

    @property
    def end(self) -> int:
        """The id this model is taught to end with."""
        return min(self.stop_ids) if self.end_of_turn is None else self.end_of_turn


def exchanged(teacher: Speaker, student: Speaker) -> tuple[int, int] | None:
    """The two end tokens that mean the same event in two models, (teacher's, student's); None where they are one id.

    A base model ends with another id than an instruct model of the same tokenizer. Compared id by id, the teacher
    would call the student's end impossible and its own, at which the student never stops, likely: completions that
    never end. So the two entries of the teacher's distribution change places.
    """
    return None if teacher.end == student.end else (teacher.end, student.end)


def own_end(tokens: Sequence[int], speaker: Speaker, student: Speaker) -> Sequence[int]:
    """A completion of `speaker` with the student's end token in place of its own."""
    if tokens and tokens[-1] in speaker.stop_ids - student.stop_ids:
        return [*tokens[:-1], student.end]
    return tokens
