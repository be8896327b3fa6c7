"""A report as one HTML file: no network, no script but its rollouts' own, foreign text inert, light and dark alike."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape, unescape

from workbench.inspector.report.plain import cell_text
from workbench.inspector.report.plots import picture
from workbench.inspector.report.section import Report, Section, as_json
from workbench.inspector.report.verdict import as_text
from workbench.text import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #ffffff; --box: #f6f8fa;
  --a: #0550ae; --b: #b35900; --c: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4ae; --line: #3d444d; --paper: #0d1117;
  --box: #161b22; --a: #79b8ff; --b: #ffb86b; --c: #7ee787; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 60rem; padding: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--a); padding: .5rem 1rem; background: var(--box); }
.answer { font-weight: 600; } .basis, .misleads { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--soft); }
dd { margin: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td, thead th { white-space: nowrap; } tbody th { font-weight: 500; min-width: 13rem; overflow-wrap: normal; }
svg { width: 100%; max-width: 45rem; height: auto; margin: .8rem 0; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } .axis { stroke: var(--soft); } .grid { stroke: var(--line); }
.reference { stroke: var(--soft); stroke-dasharray: 3 3; }
.s0, .s1, .s2 { stroke-width: 2; } .s0 { stroke: var(--a); } .s1 { stroke: var(--b); stroke-dasharray: 6 3; }
.s2 { stroke: var(--c); stroke-dasharray: 2 2; }
.m0 { fill: var(--a); } .m1 { fill: var(--b); } .m2 { fill: var(--c); }
pre { white-space: pre-wrap; background: var(--box); padding: .8rem; font-size: .85rem; }
iframe { width: 100%; height: 40rem; border: 1px solid var(--line); }
@media print { body { max-width: none; } .wide { overflow: visible; } }
"""


def page(reports: Sequence[Report], comparison: Section | None = None, rollouts: Sequence[tuple[str, str]] = ()) -> str:
    """The document: verdict first, then a section a question, each with its table, picture and JSON twin.

    Args:
        reports: one run, or two.
        comparison: what differs between two runs, paired by problem.
        rollouts: (title, HTML document) of rollouts to show; each stands in a frame without rights of its own.
    """
    title = _text("Report of " + " and ".join(r.run for r in reports))
    parts = [f"<h1>{title}</h1>", _contents(reports, comparison, rollouts)]
    if comparison is not None:
        parts.append(_section(comparison, "compare"))
    for i, report in enumerate(reports):
        parts += _run(report, f"r{i}", several=len(reports) > 1)
    for i, (name, document) in enumerate(rollouts):
        parts.append(f'<section><h2 id="rollouts-{i}">{_text(name)}</h2>{frame(name, document)}</section>')
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy([d for _, d in rollouts]))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
    )
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def policy(documents: Sequence[str]) -> str:
    """What the page may load: its own style, and the scripts and styles that its frames name by hash; no network.

    A frame inherits the page's policy, so what the page does not allow does not run in it either.
    """
    named = {kind: dict.fromkeys(h for d in documents for h in _named(kind, d)) for kind in ("script-src", "style-src")}
    own = "'sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii") + "'"
    scripts = " ".join(named["script-src"]) or "'none'"
    styles = " ".join([own, *named["style-src"]])
    return f"default-src 'none'; script-src {scripts}; style-src {styles}; base-uri 'none'; form-action 'none'"


def _named(kind: str, document: str) -> list[str]:
    """The hashes that a document's own policy allows."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', document)
    allowed = re.search(rf"{kind} ([^;]*)", unescape(found[1])) if found else None
    return re.findall(r"'sha256-[A-Za-z0-9+/=]+'", allowed[1]) if allowed else []


def frame(title: str, document: str) -> str:
    """A document of its own inside the page: its script runs without network, origin or access to the page."""
    name, content = escape(printable(title)), escape(document)
    return f'<iframe sandbox="allow-scripts" title="{name}" loading="lazy" srcdoc="{content}"></iframe>'


def _run(report: Report, key: str, *, several: bool) -> list[str]:
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.facts.items())
    parts = [f'<h2 id="{key}">{_text(report.run)}</h2>'] if several else []
    parts += [f'<p class="verdict">{_text(_sentence(report.headline))}</p>', f"<dl>{facts}</dl>"]
    parts += [_section(section, key) for section in report.sections]
    return [*parts, _decisions(report, key)]


def _contents(reports: Sequence[Report], comparison: Section | None, rollouts: Sequence[tuple[str, str]]) -> str:
    items = [("compare-comparison", comparison.title)] if comparison is not None else []
    for i, report in enumerate(reports):
        where = f"{report.run}: " if len(reports) > 1 else ""
        items += [(f"r{i}-{s.name}", where + s.title) for s in report.sections]
        items.append((f"r{i}-decisions", f"{where}What to look at"))
    items += [(f"rollouts-{i}", name) for i, (name, _) in enumerate(rollouts)]
    links = "".join(f'<li><a href="#{_text(key)}">{_text(name)}</a></li>' for key, name in items)
    return f"<details><summary>Contents</summary><ul>{links}</ul></details>"


def _section(section: Section, key: str) -> str:
    lines = [
        f'<h2 id="{key}-{_text(section.name)}">{_text(section.title)}</h2>',
        f'<p class="answer">{_text(_sentence(section.answer))}</p>',
        picture(section),
        _table(section),
    ]
    said = section.answer.removeprefix("not measured: ")
    lines += [f'<p class="basis">Not measured: {_text(why)}.</p>' for why in section.missing if why != said]
    if section.basis:
        lines.append(f'<p class="basis">{_text(_sentence(f"{section.source}: {section.basis}"))}</p>')
    if section.misleads:
        lines.append(f'<p class="misleads">When it misleads: {_text(section.misleads)}</p>')
    if section.rows:
        # ASCII, and escaped again for HTML: what a model wrote into a label stays text.
        twin = escape(as_json(section.as_dict()))
        lines.append(f"<details><summary>JSON</summary><pre>{twin}</pre></details>")
    return "<section>" + "".join(lines) + "</section>"


def _table(section: Section) -> str:
    if not section.rows:
        return ""
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in section.columns)
    body = "".join(
        f"<tr><th>{_text(row.label)}</th>"
        + "".join(f"<td>{_text(cell_text(name, row.cells.get(name)))}</td>" for name in section.columns)
        + "</tr>"
        for row in section.rows
    )
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _decisions(report: Report, key: str) -> str:
    rows = [
        f"<li><b>{_text(_sentence(t.decision.symptom))}</b> {_text(t.seen)}. "
        f"{_text(_sentence(as_text(t.decision)))}</li>"
        for t in report.decisions
    ]
    seen = f"<ul>{''.join(rows)}</ul>" if rows else "<p>No symptom of the decision table is seen.</p>"
    rest = "".join(f"<li>{_text(line)}</li>" for line in report.unseen)
    return (
        f'<section><h2 id="{key}-decisions">What to look at</h2>{seen}'
        f"<details><summary>Looked for and not seen</summary><ul>{rest}</ul></details></section>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def _text(text: str) -> str:
    """Foreign text inside an element or an attribute."""
    return escape(printable(text), quote=True)
