"""`RunConfig` as a form: every field once, grouped by what it is about, its docstring as the help."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import typing
from typing import Any, Literal

import gradio as gr

from workbench import config as config_module
from workbench.config import HINTS, THIS_TIME_ONLY, RunConfig, flag

ESSENTIAL = ("model", "problems", "recipe", "name", "steps", "batch", "group", "max_new_tokens", "lr", "eval_problems")
GROUPS: dict[str, tuple[str, ...]] = {
    "Model, device and teacher": (
        *("adapter", "device", "dtype", "chat_template", "engine", "server", "ahead"),
        *("teacher", "teacher_dtype", "teacher_device", "reference"),
    ),
    "Problems and verifier": (
        *("split", "limit", "held_out", "verifier", "max_prompt_tokens", "sandbox", "columns", "require"),
    ),
    "Recipe and optimizer": (
        *("temperature", "top_p", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "micro_tokens"),
        *("activation_checkpointing", "stages", "set"),
    ),
    "Budget, evaluation and files": (
        *("minutes", "train_tokens", "eval_tokens", "eval_every", "save_every", "keep", "fork", "track", "progress"),
        *("price_per_hour", "watts"),
    ),
}
"""Every field but those of the server (`output`) and of one start (`resume`, ...): a test counts them."""
ELSEWHERE = frozenset({"output"}) | THIS_TIME_ONLY
LONG = ("stages", "set", "columns", "require")
"""Lists: a line an item."""


@functools.cache
def helps() -> dict[str, str]:
    """Field -> its docstring, as it stands in config.py."""
    tree = ast.parse(inspect.getsource(config_module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RunConfig")
    found: dict[str, str] = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def component(name: str, choices: dict[str, list[str]]) -> Any:
    """The component of a field. `choices` offers values for some text fields."""
    default: Any = RunConfig.__dataclass_fields__[name].default
    settings: dict[str, Any] = {
        "label": flag(name)[2:],
        "info": re.sub(r" Also --[a-z-]+\.$", "", helps()[name]),
        "elem_id": f"train-{name.replace('_', '-')}",
        "min_width": 200,
    }
    kinds = _literal(HINTS[name])
    offered = [("not given", "")] if default is None and name != "model" else []
    if HINTS[name] is bool:
        return gr.Checkbox(bool(default), **settings)
    if kinds:
        return gr.Dropdown([*offered, *((k, k) for k in kinds)], value=default or "", filterable=False, **settings)
    if name in choices:
        named = [*offered, *((choice, choice) for choice in choices[name])]
        first = choices[name][0] if name == "model" else default or ""
        return gr.Dropdown(named, value=first, allow_custom_value=True, **settings)
    if name in LONG:
        return gr.Textbox("", lines=2, max_lines=6, placeholder="one a line", **settings)
    shown = "" if default is None else str(default)
    return gr.Textbox(shown, placeholder="not given", max_lines=1, **settings)


def _literal(hint: Any) -> tuple[str, ...]:
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is Literal:
            return typing.get_args(kind)
    return ()


def essentials(choices: dict[str, list[str]]) -> dict[str, Any]:
    """The fields that most runs set. Field -> component."""
    with gr.Group(elem_id="train-essentials"), gr.Row():
        return {name: component(name, choices) for name in ESSENTIAL}


def rest(choices: dict[str, list[str]]) -> dict[str, Any]:
    """All other fields, behind titles. Field -> component."""
    parts: dict[str, Any] = {}
    for title, names in GROUPS.items():
        slug = title.split(",")[0].split()[0].lower()
        with gr.Accordion(title, open=False, elem_id=f"train-group-{slug}"), gr.Row():
            parts |= {name: component(name, choices) for name in names}
    return parts
