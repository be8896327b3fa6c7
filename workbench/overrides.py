"""`--set path=value`: change one part of a recipe from text, typed by the part that stands there.

The text of a value is read as a literal, a name or a constructor with literal arguments, such as `JSD(0.3)`,
`Refresh(every=50, rate=1.0)` or `with_answer`. It is parsed, never evaluated. `dataclasses.replace` runs every
check of the recipe again, so a recipe that comes out of here is a recipe that runs.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from workbench.errors import RecipeError, UsageError, nearest
from workbench.parts import phrases
from workbench.parts.schedules import Moving
from workbench.recipe import Recipe
from workbench.records import Context

_ROOMS = (
    "workbench.divergence.family",
    "workbench.divergence.powers",
    "workbench.divergence.weighted",
    "workbench.divergence.transforms",
    "workbench.divergence.targets",
    "workbench.parts.adaptive",
    "workbench.parts.advantages",
    "workbench.parts.curricula",
    "workbench.parts.measures",
    "workbench.parts.plans",
    "workbench.parts.rewards",
    "workbench.parts.selection",
    "workbench.parts.gates",
    "workbench.parts.refresh",
    "workbench.parts.schedules",
    "workbench.parts.terms",
    "workbench.parts.weights",
    "workbench.parts.writers",
)
"""Where parts live: their public frozen dataclasses, the constants made of them, and the functions of `_MAKERS`."""
_MAKERS = ("ema", "every")
_NAMES: Mapping[str, Any] = {"None": None, "none": None, "true": True, "false": False, "inf": math.inf}


def choose(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe of the catalogue with `--set`s applied in order. Raises UsageError for a wrong name."""
    from workbench.recipes import ALL

    if name not in ALL:
        raise UsageError(f"no recipe '{name}'. {nearest(name, ALL)}")
    return functools.reduce(apply_set, overrides, ALL[name])


def apply_set(recipe: Recipe, text: str) -> Recipe:
    """The recipe with `path=value` done. Raises UsageError for a wrong path, RecipeError for an illegal value."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--set {text!r} says nothing. It is path=value. Write e.g. --set optimizer.lr=1e-5")
    changed = _changed(recipe, Recipe, path.split("."), value.strip(), f"--set {text}")
    assert isinstance(changed, Recipe)
    return changed


def _changed(node: Any, hint: Any, path: list[str], text: str, said: str) -> Any:
    """`node` with the part at `path` read from `text`; every node on the way is built anew, checks included."""
    if not path:
        return _read(hint, text, said)
    head, *rest = path
    if isinstance(node, tuple):
        index = _index(node, head, said)
        item = next((typing.get_args(kind)[0] for kind in _kinds(hint) if typing.get_origin(kind) is tuple), Any)
        return (*node[:index], _changed(node[index], item, rest, text, said), *node[index + 1 :])
    whole = not dataclasses.is_dataclass(node) or callable(getattr(node, "missing", None))
    names = [] if whole else [field.name for field in dataclasses.fields(node) if field.init]
    if not names:
        raise UsageError(f"{said}: {node!r} has no parts, so '{head}' is not one. Set it as a whole.")
    if head not in names:
        raise UsageError(f"{said}: no field '{head}' in {type(node).__name__}. {nearest(head, names)}")
    hints = _hints(node.__class__)
    new = _changed(getattr(node, head), hints[head], rest, text, said)
    return _checked(said, dataclasses.replace, node, **{head: new})


def _index(node: tuple[Any, ...], text: str, said: str) -> int:
    if text.isdecimal() and int(text) < len(node):
        return int(text)
    valid = f"0 to {len(node) - 1}" if len(node) > 1 else "0" if node else "none, it is empty"
    raise UsageError(f"{said}: no entry '{text}' in a list of {len(node)}. Valid: {valid}.")


def _read(hint: Any, text: str, said: str) -> Any:
    """The value that `text` means where `hint` is asked for."""
    kinds = _kinds(hint)
    if text in ("None", "none") and type(None) in kinds:
        return None
    if Context in kinds:
        return _checked(said, phrases.named, text)
    if str in kinds:
        return text
    choices = [choice for kind in kinds for choice in _choices(kind)]
    if choices:
        if text not in choices:
            raise UsageError(f"{said}: '{text}' is not one of its values. {nearest(text, choices)}")
        return text
    value = _literal(text, kinds, said)
    for kind in kinds:
        if _is(kind, value):
            return float(value) if kind is float and not isinstance(value, Moving) else value
    raise UsageError(f"{said}: '{text}' is not what belongs there. It takes {_wanted(kinds)}.")


def _literal(text: str, kinds: tuple[Any, ...], said: str) -> Any:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{said}: cannot read '{text}'. It takes {_wanted(kinds)}.") from error
    return _value(tree, kinds, said)


def _value(node: ast.expr, kinds: tuple[Any, ...], said: str) -> Any:
    """What a syntax tree means; everything but literals, names and constructors is refused."""
    match node:
        case ast.Constant(value=int() | float() | str() | None):
            return node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, (Any,), said) for item in items)
        case ast.Name(id=name):
            found = _named(name, kinds, said)
            return _checked(said, found) if isinstance(found, type) else found
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if all(k.arg for k in keywords):
            make = _named(name, kinds, said)
            if not callable(make) or not (isinstance(make, type) or name in _MAKERS):
                raise UsageError(f"{said}: '{name}' takes no arguments. Write {name}")
            given = {str(k.arg): _value(k.value, (Any,), said) for k in keywords}
            return _checked(said, make, *(_value(arg, (Any,), said) for arg in args), **given)
    raise UsageError(f"{said}: '{ast.unparse(node)}' is no value. It takes {_wanted(kinds)}.")


def _named(name: str, kinds: tuple[Any, ...], said: str) -> Any:
    if name in _NAMES:
        return _NAMES[name]
    words = vocabulary()
    if name in words:
        return words[name]
    valid = [word for word, part in words.items() if any(_is(kind, part) for kind in kinds)] or list(words)
    raise UsageError(f"{said}: nothing is called '{name}'. {nearest(name, valid)}")


@functools.cache
def vocabulary() -> dict[str, Any]:
    """Every name a value may use: part classes, constants made of them, and the makers."""
    from workbench.recipe import Optimizer
    from workbench.records import Refresh, Sampling

    words: dict[str, Any] = {"Optimizer": Optimizer, "Refresh": Refresh, "Sampling": Sampling}
    for room in map(importlib.import_module, _ROOMS):
        for name, part in vars(room).items():
            own = isinstance(part, type) and part.__module__ == room.__name__
            constant = not isinstance(part, type) and dataclasses.is_dataclass(part)
            if not name.startswith("_") and ((own and dataclasses.is_dataclass(part)) or constant or name in _MAKERS):
                words[name] = part
    return words


def _is(kind: Any, value: Any) -> bool:
    """Whether a value, or a class of values, is of the kind a field asks for."""
    if kind is Any:
        return True
    if kind is float and isinstance(value, Moving):
        return True  # wherever a recipe holds a number a schedule may stand
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if typing.get_origin(kind) is tuple:
        item = _kinds(typing.get_args(kind)[0])
        return isinstance(value, tuple) and all(any(_is(k, v) for k in item) for v in value)
    if not isinstance(kind, type):
        return False
    part = value if isinstance(value, type) else type(value)
    if getattr(kind, "_is_protocol", False):
        # A protocol's shape says little here (`__call__`); its members, or what they inherit from, live beside it.
        near = any(parent.__module__ == kind.__module__ for parent in part.__mro__)
        return near and all(hasattr(value, name) for name in _members(kind))
    return issubclass(part, kind)


def _members(protocol: Any) -> set[str]:
    """What a protocol asks of a part beside being called."""
    return {name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: X and None of `X | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for arg in typing.get_args(hint) for kind in _kinds(arg))
    return (hint,)


def _choices(kind: Any) -> tuple[str, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _wanted(kinds: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}
    return " or ".join(words.get(kind) or _parts(kind) for kind in kinds)


def _parts(kind: Any) -> str:
    names = [name for name, part in vocabulary().items() if _is(kind, part)]
    if typing.get_origin(kind) is tuple:
        return f"a list, such as ({_parts(typing.get_args(kind)[0])},)"
    return ", ".join(sorted(names)) or getattr(kind, "__name__", str(kind))


def _checked(said: str, make: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a constructor; what it refuses becomes a RecipeError that starts with what the user wrote."""
    try:
        return make(*args, **kwargs)
    except UsageError as error:
        raise type(error)(f"{said}: {error}") from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{said}: {error}") from error
