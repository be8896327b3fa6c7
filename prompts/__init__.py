r"""Every text a model is shown, one file each: `student/`, `teacher/`, `system/`, `probe/`.

The first line of a file names the text's source (paper, appendix, table) and is never shown; the rest is the
body. `{name}` in a body is replaced by exact name, so a literal `\boxed{}` stays as it is. Values go in
verbatim and are never searched for placeholders again.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["PromptError", "Template", "load", "names"]

_FOLDER = Path(__file__).parent
_ROLES = ("student", "teacher", "system", "probe")
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class PromptError(ValueError):
    """A template that does not exist, or one filled with the wrong names; the text is `WHAT. WHY. DO.`."""

    exit_code = 2


@dataclass(frozen=True)
class Template:
    """One text with holes."""

    name: str
    source: str
    """Where the wording comes from; never shown to a model."""
    body: str
    placeholders: tuple[str, ...] = field(init=False)
    """Names to be filled, in order of first appearance."""

    def __post_init__(self) -> None:
        """Read the placeholders off the body."""
        found = dict.fromkeys(_PLACEHOLDER.findall(self.body))
        object.__setattr__(self, "placeholders", tuple(found))

    def render(self, **values: str) -> str:
        """The text with every placeholder replaced; raises PromptError unless exactly those are given."""
        if missing := [name for name in self.placeholders if name not in values]:
            raise PromptError(
                f"prompt '{self.name}' needs {_braced(missing)}, which was not given. "
                f"It takes {_braced(self.placeholders)}. Give each of them a text."
            )
        if unknown := sorted(set(values) - set(self.placeholders)):
            raise PromptError(
                f"prompt '{self.name}' has no {_braced(unknown)}, so that text would be lost. "
                f"It takes {_braced(self.placeholders)}. Leave the rest out."
            )
        return _PLACEHOLDER.sub(lambda hole: values[hole[1]], self.body)


@cache
def load(name: str) -> Template:
    """The template `role/stem`, such as `teacher/opsd`; raises PromptError for a name that does not exist."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise PromptError(f"no prompt is called '{name}'. {hint}Valid: {', '.join(known)}.")
    # utf-8-sig: a text edited on Windows may start with a byte order mark, which no model should read.
    source, _, body = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8-sig").partition("\n")
    return Template(name, source.strip(), body.removesuffix("\n"))


@cache
def names() -> tuple[str, ...]:
    """All templates, sorted."""
    return tuple(sorted(f"{role}/{path.stem}" for role in _ROLES for path in (_FOLDER / role).glob("*.txt")))


def _braced(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"{{{name}}}" for name in names) or "nothing"
