"""Layers of configuration: TOML and JSON files, a run's own `run.json`, and the text of flags, all to typed values.

A layer is a plain mapping from field names to values. Later layers win: lists replace, tables merge.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from workbench.config import ALIASES, HINTS, THIS_TIME_ONLY, RunConfig, as_dict, flag
from workbench.errors import UsageError, nearest

Layer = dict[str, Any]
_TABLES = ("set", "columns")
"""Lists of `key=value` that a file may also write as a table."""


def read_layer(path: str | Path) -> Layer:
    """The typed values of one file. Raises UsageError that names file, key and nearest key."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise UsageError(
            f"cannot read the configuration {path}: {reason}. --config takes TOML or JSON files."
        ) from error
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(_refuse_yaml(path, text))
    data = _parse(path, text)
    stored = data.get("config")
    if isinstance(stored, dict):  # a run.json: only its configuration, and not what one start of it asked for
        data = {key: value for key, value in stored.items() if key not in THIS_TIME_ONLY}
    return {_known(key, path): convert(key, value, str(path)) for key, value in data.items()}


def merge(layers: Sequence[Mapping[str, Any]]) -> Layer:
    """One layer out of many, the last one to say something winning."""
    merged: Layer = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def build(layer: Mapping[str, Any]) -> RunConfig:
    """The configuration a merged layer says. Raises UsageError."""
    return RunConfig(**{key: _pairs(value) for key, value in layer.items()})


def convert(key: str, value: Any, origin: str) -> Any:
    """A file's value as the field's type; None where the field may be None. Raises UsageError."""
    hint = HINTS[key]
    if key in _TABLES and isinstance(value, dict):
        return dict(_flat(value))
    inner = _inner(hint)
    if value is None and inner is not hint:
        return None
    fits: bool
    if inner is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif inner in (int, bool, str):
        fits = type(value) is inner
    elif typing.get_origin(inner) is Literal:
        fits = value in typing.get_args(inner)
    else:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        value = tuple(value) if fits else value
    if not fits:
        raise UsageError(f"{origin}: {key} = {json.dumps(value, default=str)} does not fit. It takes {wanted(key)}.")
    return value


def from_text(key: str, text: str) -> Any:
    """One flag's value from its text. Raises UsageError naming what the field takes."""
    hint = HINTS[key]
    inner = _inner(hint)
    if inner is not hint and text == "None":
        return None
    try:
        if inner in (int, float):
            return inner(text)
        if inner is bool:
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError) as error:
        example = "8" if inner is int else "0.5"
        raise UsageError(f"{flag(key)} {text!r} does not fit. It takes {wanted(key)}: {flag(key)} {example}") from error
    if typing.get_origin(inner) is Literal and text not in typing.get_args(inner):
        raise UsageError(f"{flag(key)} {text!r} is not one of its values. {nearest(text, typing.get_args(inner))}")
    return text


def wanted(key: str) -> str:
    """What a field takes, in words."""
    hint = _inner(HINTS[key])
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "a list of texts")


def to_toml(config: RunConfig) -> str:
    """The configuration as a TOML file that reads back equal; fields left to the recipe are left out."""
    lines = [f"{key} = {_toml(value)}" for key, value in as_dict(config).items() if value not in (None, [])]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    # JSON's text and whole numbers are TOML's, but for one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parse(path: Path, text: str) -> Layer:
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageError(
            f"{path} is not {kind}: {error}. --config takes TOML files, and JSON files named *.json."
        ) from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no table of settings. Write key = value lines, e.g. steps = 8")
    return data


def _known(key: str, path: Path) -> str:
    if key in HINTS:
        return key
    plain = key.replace("-", "_")
    if plain in ALIASES or plain in HINTS:
        raise UsageError(f"{path}: no key '{key}' in files. It is called '{ALIASES.get(plain, plain)}' there.")
    raise UsageError(f"{path}: no key '{key}'. {nearest(plain, HINTS)}")


def _inner(hint: Any) -> Any:
    """X of `X | None`, else the hint itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, str(value))]
    return rows


def _pairs(value: Any) -> Any:
    return tuple(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else value


def _refuse_yaml(path: Path, text: str) -> str:
    """YAML reads 1e-5 as text and no as false: show the same content as TOML, typed by the fields' types."""
    import yaml  # comes with transformers; needed for this message alone

    head = f"{path} is YAML, where 1e-5 is text and no is false. Files are TOML or JSON."
    try:
        data = yaml.load(text, Loader=yaml.BaseLoader)  # makes nothing but text
    except yaml.YAMLError:
        return f"{head} Write key = value lines, e.g. steps = 8, into {path.with_suffix('.toml').name}."
    lines = [_yaml_line(str(key), value) for key, value in data.items()] if isinstance(data, dict) else []
    return "\n".join([f"{head} Save this as {path.with_suffix('.toml').name}:", *lines])


def _yaml_line(key: str, value: Any) -> str:
    field = key.replace("-", "_")
    field = ALIASES.get(field, field)
    if isinstance(value, list):
        return f"{field} = {_toml([str(item) for item in value])}"
    if isinstance(value, dict):
        return f"{field} = {_toml([f'{k}={v}' for k, v in _flat(value)])}"
    if field not in HINTS:
        return f"# no key '{key}': {nearest(field, HINTS)}"
    inner = _inner(HINTS[field])
    if inner is bool:
        return f"{field} = {'true' if value.lower() in ('true', 'yes', 'on') else 'false'}"
    if inner in (int, float) and re.fullmatch(r"[-+]?[0-9][0-9_.]*(e[-+]?[0-9]+)?", value, re.IGNORECASE):
        return f"{field} = {value}"
    return f"{field} = {_toml(value)}"


def flags(config: RunConfig) -> list[str]:
    """What differs from the defaults, as flags."""
    said: list[str] = []
    for name, field in RunConfig.__dataclass_fields__.items():
        value = getattr(config, name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            said += [flag(name) if value else f"--no-{flag(name)[2:]}"]
        elif isinstance(value, tuple):
            said += [flag(name), *value]
        elif str(value).startswith("-"):
            said += [f"{flag(name)}={value}"]
        else:
            said += [flag(name), str(value)]
    return said
