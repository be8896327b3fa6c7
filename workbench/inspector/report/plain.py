"""A report as text: for a terminal, and as Markdown for a page of notes. Foreign text is made printable."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.inspector.report.section import Report, Section, shown
from workbench.inspector.report.verdict import as_text
from workbench.text import printable

SIGNED = ("change", "difference", "signed", "value", "overlap")
"""Parts of a column's name that tell numbers whose sign matters."""


def text(report: Report) -> str:
    """For a terminal."""
    lines = [
        f"report of {printable(report.run)}",
        *(f"  {printable(k):14} {printable(v)}" for k, v in report.facts.items()),
    ]
    lines += ["", f"verdict        {printable(report.headline)}"]
    for section in report.sections:
        lines += ["", *section_lines(section)]
    lines += ["", "what to look at", *_decisions(report)]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The same as Markdown; tables as code blocks, so that nothing in them formats."""
    lines = [f"# Report of {_inert(report.run)}", "", f"**{_inert(report.headline)}**", ""]
    lines += [f"- {_inert(name)}: {_inert(value)}" for name, value in report.facts.items()]
    for section in report.sections:
        lines += ["", f"## {_inert(section.title)}", "", _inert(section.answer), ""]
        lines += (
            ["```text", *(line.replace("```", "'''") for line in table(section)), "```", ""] if section.rows else []
        )
        lines += [f"- not measured: {_inert(why)}" for why in section.missing]
        lines += [f"- {_inert(f'{section.source}: {section.basis}')}"] if section.basis else []
        lines += [f"- misleads when: {_inert(section.misleads)}"] if section.misleads else []
    return "\n".join(
        [*lines, "", "## What to look at", "", *(f"- {_inert(line.strip())}" for line in _decisions(report))]
    )


def table(section: Section) -> list[str]:
    """Rows under their columns, aligned."""
    head = ("", *(printable(name.replace("_", " ")) for name in section.columns))
    body = [
        (printable(row.label), *(printable(cell_text(name, row.cells.get(name))) for name in section.columns))
        for row in section.rows
    ]
    rows: Sequence[tuple[str, ...]] = [head, *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def cell_text(column: str, cell: object) -> str:
    """A cell with a sign where its column is a difference."""
    return shown(cell, signed=any(part in column for part in SIGNED))  # type: ignore[arg-type]


def section_text(section: Section) -> str:
    """One section, for a terminal."""
    return "\n".join(section_lines(section))


def section_lines(section: Section) -> list[str]:
    """The same, line by line."""
    lines = [printable(section.title), f"  {printable(section.answer)}"]
    lines += [f"    {line}" for line in table(section)] if section.rows else []
    lines += [f"  {section.source}: {printable(section.basis)}"] if section.basis else []
    known = f"not measured: {section.missing[0]}" if section.missing else ""
    lines += [f"  not measured: {printable(why)}" for why in section.missing if known != section.answer]
    return lines


def _decisions(report: Report) -> list[str]:
    lines = [
        f"  {t.decision.symptom} ({printable(t.seen)}): {printable(as_text(t.decision))}" for t in report.decisions
    ]
    lines = lines or ["  no symptom of the decision table is seen"]
    return [*lines, *(f"  not seen: {printable(line)}" for line in report.unseen)]


def _inert(value: str) -> str:
    """One line in which nothing formats or links."""
    return printable(value).translate({ord(c): f"\\{c}" for c in "\\`*_{}[]<>#|!"})
