"""The tokens the losses are measured on, made once and kept in a file.

Real: SmolLM2 reads this repository's prose in windows of 64 tokens; as student it knows the 16 tokens before, as
teacher the 192 before, so the two distributions differ the way a student's and a better informed teacher's do.
Made up: normal numbers in a larger model's shape.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "bench"
PAGES = ("README.md", "docs/architecture.md", "docs/notation.md", "CONTRIBUTING.md", "docs/log.md")
WINDOW, STUDENT_SEES, TEACHER_SEES = 64, 16, 192


@dataclass(frozen=True)
class Shape:
    """A case: `model` None makes numbers up."""

    name: str
    tokens: int
    vocabulary: int
    width: int
    model: str | None = None


REAL = Shape("smollm2-135m", 4096, 49152, 576, "smollm2")
LARGE = Shape("made-up-128256x2048", 512, 128_256, 2048)
TINY = Shape("tiny", 256, 640, 32)


def case(shape: Shape) -> Path:
    """The file of a case, made if it is not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{shape.name}.pt"
    if not path.is_file():
        made = _made_up(shape) if shape.model is None else _real(shape)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(made, fresh)
        fresh.rename(path)
    return path


def _made_up(shape: Shape) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    hidden = normal(shape.tokens, shape.width)
    weight = normal(shape.vocabulary, shape.width) * (3.0 / shape.width**0.5)
    return {
        "hidden": hidden,
        "other": hidden + 0.3 * normal(shape.tokens, shape.width),
        "weight": weight,
        "teacher_weight": weight.clone(),
        "ids": torch.randint(0, shape.vocabulary, (shape.tokens,), generator=generator),
    }


def _real(shape: Shape) -> dict[str, torch.Tensor]:
    from workbench.engine.engine import Engine, EngineSettings
    from workbench.engine.loading import load
    from workbench.parts.refresh import LIVE

    loaded = load(shape.model or "", dtype=torch.float32)
    engine = Engine(loaded, adapter=None, refresh=LIVE, settings=EngineSettings())
    text = "\n\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    count = shape.tokens // WINDOW
    stride = (len(tokens) - TEACHER_SEES - WINDOW) // (count - 1)  # windows may overlap where prose is short
    starts = [TEACHER_SEES + i * stride for i in range(count)]
    completions = [tokens[s : s + WINDOW] for s in starts]

    def states(role, sees: int) -> torch.Tensor:
        prompts = [tokens[s - sees : s] for s in starts]
        parts = [
            engine.score(role, prompts[i : i + 8], completions[i : i + 8]).detach() for i in range(0, len(prompts), 8)
        ]
        return torch.cat(parts)

    weight = engine.head("student").weight.detach()
    with torch.no_grad():
        return {
            "hidden": states("student", STUDENT_SEES),
            "other": states("teacher", TEACHER_SEES),
            "weight": weight.clone(),
            "teacher_weight": weight.clone(),
            "ids": torch.tensor([t for c in completions for t in c]),
        }
