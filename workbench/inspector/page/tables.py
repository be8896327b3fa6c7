"""A completion as a table: one row a token, every number that the view shows. CSV for spreadsheets, JSON for programs.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`; such text gets an apostrophe in front, as spreadsheets
themselves write text. Our own numbers are left alone. Invisible characters are escapes; the JSON holds the raw text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from workbench.inspector.page.value import document, dumps, number
from workbench.inspector.seen import Seen
from workbench.text import printable

_FLOATS = (
    "student_logp",
    "teacher_logp",
    "difference",
    "divergence",
    "forward_kl",
    "reverse_kl",
    "jsd",
    "student_entropy",
    "teacher_entropy",
    "weight",
    "loss",
)
_RANKS = ("student_rank", "teacher_rank")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula, in full width too."""
HEADER = ("run", "rollout", "position", "id", "text", *_FLOATS, *_RANKS, "why")


def table(*several: Seen) -> str:
    """The CSV, RFC 4180 with a header; NaN is an empty cell. Nats; `loss` is what the token adds to the step's loss."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEADER)
    for seen in several:
        writer.writerows(_rows(seen))
    return out.getvalue()


def _rows(seen: Seen) -> Iterator[list[object]]:
    floats, ranks = ([getattr(seen, name) for name in names] for names in (_FLOATS, _RANKS))
    whole = [cell(seen.run), cell(seen.rollout)]
    for t, (token, text) in enumerate(zip(seen.token_ids, seen.text, strict=True)):
        cells = [number(float(column[t])) for column in floats] + [None if r[t] < 0 else int(r[t]) for r in ranks]
        shown = ("" if x is None else x for x in cells)
        yield [*whole, seen.start + t, token, cell(text), *shown, cell(seen.why[t])]


def cell(text: str) -> str:
    """Text that a spreadsheet takes for text and a terminal does not obey."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip(" \u00a0\u3000")[:1] in _FORMULA else shown


def documents(several: Sequence[Seen]) -> str:
    """The JSON twin, ASCII: a list of `document`s; `static.page_of` makes the HTML file of it again."""
    return dumps([document(seen) for seen in several]) + "\n"
