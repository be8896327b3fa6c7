"""Rows from files, folders and the Hub: what a row means is `columns`' business."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError, UsageError, nearest

Row = Mapping[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


@dataclass(frozen=True)
class Rows:
    """What was read, with what is needed to speak about it."""

    label: str
    """How messages call the source."""
    stem: str
    """What ids that the data lacks begin with."""
    rows: tuple[Row, ...]
    places: tuple[str, ...]
    """Where each row stands: `line 3`, `row 2`."""


def is_path(source: str) -> bool:
    """Whether `source` can only mean a file or folder, so that the Hub is not asked."""
    return source.startswith((".", "/", "~")) or source.endswith(SUFFIXES) or os.path.exists(source)


def read_path(source: str, split: str | None, limit: int | None) -> Rows:
    """The rows of a file, or of a folder that holds one; raises InputError saying where it looked."""
    # os.path, not pathlib: it answers for names that are too long, and for ~nobody, instead of raising.
    path = Path(os.path.expanduser(source))
    if not os.path.exists(path):
        raise InputError(_not_there(source, path))
    if path.is_dir():
        path = _only_file(path, source)
    suffix = next((s for s in reversed(SUFFIXES) if path.name.endswith(s)), None)
    if suffix is None:
        raise InputError(f"{source} is of no known kind. Give one of {', '.join(SUFFIXES)}.")
    if suffix in (".json", ".json.gz"):
        pairs = _json(path, split)
    elif split is not None:
        raise UsageError(f"{path.name} has no splits. Leave --split out.")
    else:
        pairs = _parquet(path) if suffix == ".parquet" else _json_lines(path)
    found = list(itertools.islice(pairs, limit))
    if not found:
        raise InputError(f"{path.name} is empty. A problem is one JSON object a line, or one row.")
    stem = path.name.removesuffix(suffix)
    return Rows(path.name, stem, tuple(row for _, row in found), tuple(place for place, _ in found))


def read_hub(source: str, split: str | None, limit: int | None) -> Rows:
    """The rows of a Hub data set, `owner/name` or `owner/name:config`; raises InputError."""
    name, _, config = source.partition(":")
    # Imported here: it costs 1.4 s, which a run on a file need not pay.
    import datasets

    try:
        loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the Hub, the network, a script or a file: all end here, none is ours
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
            raise InputError(
                f"data set '{name}' is not in the local cache and HF_HUB_OFFLINE is set ({reason}). Nothing was asked "
                "of the Hub. Unset it, or give a file: --problems data.jsonl."
            ) from error
        raise InputError(
            f"data set '{name}' could not be loaded. {type(error).__name__}: {reason}. "
            "Check the name (owner/name[:config]), --split, the connection, and hf auth login if it is private."
        ) from error
    if isinstance(loaded, dict):
        if len(loaded) > 1 and "train" not in loaded:
            raise InputError(f"data set '{name}' has splits {', '.join(loaded)}. Choose one with --split.")
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    rows = tuple(itertools.islice(loaded, limit))
    if not rows:
        raise InputError(f"data set '{name}' is empty. Choose another --split.")
    return Rows(name, name.rpartition("/")[2], rows, tuple(f"row {at}" for at in range(len(rows))))


def _not_there(source: str, path: Path) -> str:
    if source.startswith((".", "/", "~")):
        why = f"it starts with {'./' if source.startswith('./') else source[0]}"
    else:
        why = f"it ends in {''.join(Path(source).suffixes[-2:])}"
    siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    near = [name for name in siblings if name.startswith(path.name[:3])][:3]
    hint = f"Beside it: {', '.join(near)}." if near else "Check the path."
    kind = "file" if path.suffix else "folder"
    return f"no {kind} {source} (looked in {path.absolute()}; {why} so the Hub was not tried). {hint}"


def _only_file(folder: Path, source: str) -> Path:
    files = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES))
    if len(files) != 1:
        held = ", ".join(p.name for p in files[:8]) or f"none of {', '.join(SUFFIXES)}"
        raise InputError(f"folder {source} holds {held}. Name one file.")
    return files[0]


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, raw in enumerate(_lines(path), start=1):
        place = f"line {number}"
        # A byte order mark belongs to no line but the first; a line of it alone is blank.
        text = _decoded(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, f"{path.name} {place}")
        if text.strip():
            yield place, _object(_parsed(text, f"{path.name} {place}"), f"{path.name} {place}")


def _json(path: Path, split: str | None) -> Iterator[tuple[str, Row]]:
    text = _decoded(b"".join(_lines(path)).removeprefix(b"\xef\xbb\xbf"), path.name)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if not text.lstrip().startswith("{"):
            _parsed(text, path.name)
        # Several objects, one a line: a .jsonl under another name.
        yield from _json_lines(path)
        return
    for at, row in enumerate(_table(value, split, path.name)):
        yield f"row {at}", _object(row, f"{path.name} row {at}")


def _table(value: object, split: str | None, label: str) -> list[object]:
    """The list of rows in a JSON document: the document, or the one of its lists that `split` names."""
    if isinstance(value, dict):
        tables = {key: rows for key, rows in value.items() if isinstance(rows, list) and _is_table(rows)}
        if split is not None and split not in tables:
            raise UsageError(f"{label} has no split '{split}'. {nearest(split, tables)}")
        if split is None and len(tables) > 1:
            raise InputError(f"{label} holds {', '.join(tables)}. Choose one with --split.")
        return tables[split] if split is not None else next(iter(tables.values()), [value])
    if split is not None:
        raise UsageError(f"{label} has no splits. Leave --split out.")
    if not isinstance(value, list):
        raise InputError(f"{label} holds {_kind(value)}. Give a list of objects.")
    return value


def _is_table(rows: list[object]) -> bool:
    # A single problem whose `messages` is a chat is no table of turns.
    return bool(rows) and all(isinstance(row, dict) and "role" not in row for row in rows)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    # Imported here: no run on JSON needs it.
    import pyarrow
    import pyarrow.parquet

    try:
        at = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"row {at}", row
                at += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path.name} is no readable parquet file ({_first_line(error)}). Write it again.") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes, split at newlines only: JSON may hold U+2028, at which str.splitlines would cut."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name} cannot be read ({_first_line(error)}). Check or fetch it again.") from error


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x}, column {error.start + 1}). Save it as UTF-8."
        ) from error


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        reason = error.msg[:1].lower() + error.msg[1:]
        reason = "unterminated string" if reason.startswith("unterminated string") else reason
        raise InputError(f"{where}: not JSON ({reason}, {at}). Mend or drop it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not usable JSON ({_first_line(error)}). Mend or drop it.") from error


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_kind(value)}, but a problem is an object with named fields.")
    return value


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "null")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
