r"""A run's rollouts as one parquet file of plain types, as `datasets`, pandas and DuckDB read them.

Columns are the fields of rollouts.jsonl. Text is as it was written, NUL included; half of a surrogate pair, which is
no text in any file, stands as its escape (`\ud83d`). A number that was not finite is null.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.text import printable

TEXTS = ("problem", "question", "author", "text", "stop", "status", "extracted", "reason", "level", "behaviour")
INTEGERS = ("step", "index", "weights_version")
REALS = ("score", "advantage")
SERIES = ("divergence", "sampler_logp")
"""Lists of float32, one number a completion token; null where nothing was computed."""
ROWS = 256
"""Rollouts written at a time, and rows of a group."""


def write(run: Path, target: Path) -> int:
    """Write every rollout of `run` to `target`, whole or not at all; returns how many.

    Raises InputError where the run has none, or `target` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows(run / "rollouts.jsonl")
    first = list(itertools.islice(rows, ROWS))
    if not first:
        raise InputError(
            f"{printable(run)} holds no rollouts (looked for {run / 'rollouts.jsonl'}). Its first step is not done, or "
            "it is no run. Name another."
        )
    fresh, n = target.with_name(f".{target.name}.tmp"), 0
    try:
        with pq.ParquetWriter(fresh, _schema(), compression="zstd") as file:
            while first:
                file.write_table(pa.Table.from_pylist([_row(row) for row in first], schema=_schema()))
                n += len(first)
                first = list(itertools.islice(rows, ROWS))
        os.replace(fresh, target)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{printable(target)} cannot be written: {printable(error)[:200]}. The run is untouched. "
            "Name another place with --rollouts FILE."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return n


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Whole records one by one: a run's rollouts need not fit into memory. A torn last line is no record."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _schema() -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = dict.fromkeys(INTEGERS, pa.int64()) | dict.fromkeys(TEXTS, pa.string())
    columns |= {"kept": pa.bool_()} | dict.fromkeys(REALS, pa.float64())
    columns |= {"token_ids": pa.list_(pa.int32())} | dict.fromkeys(SERIES, pa.list_(pa.float32()))
    return pa.schema(list(columns.items()))


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: _text(row.get(name)) for name in TEXTS}
    return found | {name: row.get(name) for name in (*INTEGERS, *REALS, *SERIES, "kept", "token_ids")}


def _text(value: Any) -> str | None:
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode("utf-8")
