"""The token view as a component of the app.

    view = TokenView(find=store.get, branch=True, elem_id="live-tokens")      # store.get(run, rollout) -> Seen | None

    def rollout(...):                      # a generator; at most 8 yields a second, every yield is drawn
        for piece in pieces:               # `Seen` whose `start` says where it belongs
            yield token_value(piece)       # off > 0 appends, nothing drawn before it moves

    button.click(rollout, inputs, view, show_progress="hidden")
    view.token(on_token, None, [...])      # def on_token(event: gr.EventData): event.run, event.rollout, event.t
    view.branch(on_branch, ...)            # event.run, .rollout, .t, .token (id), .text: keep tokens < t, write .token

- Value: the string of `workbench.inspector.page.value.token_value`; "" or None empties the view.
- `find` is asked for what the value leaves out (the likeliest tokens at one position) and for a range that this
  browser missed (a value with `off` beyond what it has). It must only look up; it runs beside the queue.
- Views with the same `group` on a page share selection, colours, scale, threshold and scrolling.
- A view in a tab nobody opened is not mounted: its value is drawn when it is.
- What events carry (`.text`, `.run`) is text of a model or a file: `printable` before it enters another component.
- To select from outside, give a value with `"at": t` (`token_value(seen, at=t)`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from workbench.inspector.page import static
from workbench.inspector.page.value import detail, dumps, token_value
from workbench.inspector.seen import Seen
from workbench.screens.component import Component

Find = Callable[[str, str], Seen | None]
"""(run, rollout) -> what is stored of it, whole, or None."""

_MOUNT = """
const root = element.querySelector(".tv-root");
const view = new TokenView(root, {
  group: props.group, branch: props.branches,
  emit: (name, what) => { if (name === "token") trigger("token", what); else trigger("branch", what); },
  detail: (run, rollout, t) => server.token_detail({ run, rollout, t }).then((found) => found && JSON.parse(found)),
  span: (run, rollout, since) => server.token_span({ run, rollout, since }),
});
const take = () => view.take(props.value);
watch("value", take);
new MutationObserver(() => view.theme()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
take();
"""


class TokenView(Component):
    """A completion as text that both roles tinted; the module says how it is used."""

    def __init__(
        self,
        value: str | None = None,
        *,
        find: Find | None = None,
        branch: bool = False,
        group: str = "",
        elem_id: str | None = None,
        **others: Any,
    ) -> None:
        """Lay it out.

        Args:
            value: what to show first.
            find: looks up stored completions; without it there are neither alternatives nor ranges.
            branch: whether the page can continue from a token; adds the buttons and the event `branch`.
            group: views of one name move together.
            elem_id: of the component.
            others: what `gr.HTML` takes, e.g. `visible`, `scale`.
        """
        super().__init__(
            value,
            html_template='<div class="tv-root"></div>',
            css_template=static.style(),
            js_on_load=_script(),
            apply_default_css=False,
            server_functions=list(_server(find or _nothing)),
            elem_id=elem_id,
            group=group,
            branches=branch,
            **others,
        )


@lru_cache
def _script() -> str:
    return static.script() + _MOUNT


def _nothing(run: str, rollout: str) -> Seen | None:
    return None


def _server(find: Find) -> tuple[Callable[[Any], Any], ...]:
    """What the browser may ask for, beside the queue: stored data, one argument, checked; None where there is none."""

    def token_detail(asked: Any) -> str | None:
        """Both roles' likeliest tokens at one position; JSON in ASCII, for half a surrogate pair is no UTF-8."""
        seen, t = _found(find, asked, "t")
        return None if seen is None or not seen.start <= t < seen.start + len(seen) else dumps(detail(seen, t))

    def token_span(asked: Any) -> str | None:
        """The tokens from a position on."""
        seen, since = _found(find, asked, "since")
        return None if seen is None or since > seen.start + len(seen) else token_value(seen, since)

    return token_detail, token_span


def _found(find: Find, asked: Any, name: str) -> tuple[Seen | None, int]:
    """What a browser asked for; anything it made up is nothing."""
    if not isinstance(asked, dict):
        return None, 0
    run, rollout, t = asked.get("run"), asked.get("rollout"), asked.get(name)
    if not (isinstance(run, str) and isinstance(rollout, str) and type(t) is int and t >= 0):
        return None, 0
    return find(run, rollout), t
