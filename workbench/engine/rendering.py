"""Chat messages to token ids, the same way for both roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError
from workbench.records import Case, Context, Message

_PROBE = "0f3b9"


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model sees it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Renderer:
    """The chat template of one tokenizer."""

    tokenizer: Any

    def messages(self, messages: list[Message], **kwargs: object) -> Rendered:
        """Render a chat with its generation prompt. Raises InputError when the template refuses it.

        The template's text is tokenised without special tokens: it already holds those it wants, and a second BOS
        would be seen by the model.
        """
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)
        except Exception as error:  # jinja raises what the template's author wrote
            raise InputError(
                f"the chat template refuses the prompt: {error}. Change the context's roles, or give "
                "--chat-template FILE."
            ) from error
        return Rendered(text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def prompt(self, context: Context, case: Case) -> Rendered:
        """What `context` shows for `case`, with its thinking mode and the problem's own template arguments."""
        kwargs: dict[str, object] = dict(case.problem.template_kwargs)
        if context.thinking is not None:
            kwargs["enable_thinking"] = context.thinking
        return self.messages(context(case), **kwargs)

    def end_of_turn(self, stop_ids: frozenset[int]) -> int | None:
        """The stop token with which the template closes an assistant's turn; None when it closes it otherwise."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self.tokenizer.apply_chat_template(chat, tokenize=False)
        except Exception:  # a template that takes no assistant turn has no end of one
            return None
        after = text.rsplit(_PROBE, 1)[-1]
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return next((i for i in ids if i in stop_ids), None)


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a completion: what tokenizer, config and generation config name, together."""
    found: set[int] = set()
    for owner in (tokenizer, model.config, getattr(model, "generation_config", None)):
        value = getattr(owner, "eos_token_id", None)
        found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return frozenset(int(i) for i in found)
