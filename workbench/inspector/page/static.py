"""One HTML file of one or several completions: works from `file://`, asks nobody for anything, prints.

The data stand in JSON blocks that no parser takes for markup, the page draws them through `textContent`, and a policy
allows the page's own script and style by their hashes and nothing else: no network, no other script, no form.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from workbench.inspector.page.value import document, dumps
from workbench.inspector.seen import Seen

_SCRIPTS = ("draw.js", "panel.js", "frame.js", "tokens.js")

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header class="tv-page-head"><h1>{title}</h1>
<div class="tv-page-tools"><label>Theme <select id="theme"><option value="">as the system</option>
<option value="light">light</option><option value="dark">dark</option></select></label></div></header>
<main>
{sections}
</main>
<noscript><p>The tokens are drawn by the script of this page; scripts are switched off.</p></noscript>
<script>{script}</script>
</body>
</html>
"""
_SECTION = '<section class="tv-sheet"><script type="application/json">{data}</script></section>'


def page(seen: Seen | Sequence[Seen], *, title: str = "", linked: bool = False) -> str:
    """The file's text, ASCII.

    Args:
        seen: the completions, in the order shown.
        title: of the page; else the run and the first problem.
        linked: one selection and one scroll for all, for the same tokens seen by several pairs of roles.
    """
    several = [seen] if isinstance(seen, Seen) else list(seen)
    return page_of([document(one) for one in several], title=title, linked=linked)


def page_of(documents: Sequence[dict[str, Any]], *, title: str = "", linked: bool = False) -> str:
    """As `page`, of what `document` made: a JSON file is enough to write the page again."""
    title = title or _title(documents)
    script, style = _script(linked), _style()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = "\n".join(_SECTION.format(data=_inert(dumps(one))) for one in documents)
    text = _FRAME.format(
        policy=html.escape(policy), title=html.escape(title), style=style, sections=sections, script=script
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


@lru_cache
def script() -> str:
    """The view's code: defines `TokenView` and what it draws with."""
    return "\n".join(_asset(name) for name in _SCRIPTS)


@lru_cache
def style() -> str:
    """The view's style."""
    return _asset("tokens.css")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script(linked: bool) -> str:
    # A script element's text is no markup, so it must be ASCII by itself: the page's hash is taken of these bytes.
    group = '"page"' if linked else "undefined"
    code = '"use strict";\n(() => {\n' + script() + _asset("file.js") + f"\nshowFile({group});\n}})();"
    return "".join(c if ord(c) < 128 else f"\\u{ord(c):04x}" for c in code)


def _style() -> str:
    return style() + _asset("file.css")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _inert(data: str) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or begins a comment."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(documents: Sequence[dict[str, Any]]) -> str:
    if not documents:
        return "no completions"
    value = documents[0]["value"]
    return str(value["run"] or value["facts"]["problem"] or "completion")
