"""Token records on disk: `runs/NAME/tokens/step-00000008.parquet`, a row a completion; and finding rollouts again.

Columns are those of `Seen`; a row of n tokens holds lists of n. `values` and `weights` are a list a term. Arrays of
`tops` are flat, `top` entries a token. Floats are float32, as the loss has them. A step's file appears whole or not at
all; readers never fail on what a kill left behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verifiers import Verdict
from workbench.errors import InputError
from workbench.inspector.seen import Seen, Tops
from workbench.text import printable

SCHEMA = "workbench.tokens.v1"
"""Of the files' metadata; a reader refuses another."""
FOLDER = "tokens"
_log = logging.getLogger(__name__)

_TEXTS = ("run", "rollout", "problem", "author", "stop", "recipe", "source", "question", "answer", "solution")
_INTS = ("step", "index")
_FLOATS = (
    "student_logp", "teacher_logp", "forward_kl", "reverse_kl", "jsd", "student_entropy", "teacher_entropy", "weight",
)  # fmt: skip
_IDS = ("token_ids", "student_prompt", "teacher_prompt", "student_rank", "teacher_rank")
_WORDS = ("text", "why", "terms")
_TERMS = ("values", "weights")
_TOP_IDS = ("student_ids", "teacher_ids")
_TOP_FLOATS = (
    "student_logp", "student_other", "student_tail", "teacher_logp", "teacher_other", "teacher_tail",
)  # fmt: skip
_LISTED = ("rollout", "problem", "step", "index", "author", "stop", "verdict", "tokens", "loss", "kept", "top")


@dataclass(frozen=True)
class Listed:
    """A rollout of a run, for a list: everything that can be said without reading its tokens."""

    path: Path
    row: int
    rollout: str
    problem: str
    step: int
    index: int
    author: str
    stop: str
    status: str
    tokens: int
    loss: float
    """What it added to its step's loss."""
    kept: bool
    """Whether the loss saw any of its tokens."""
    shown: bool
    """Whether the likeliest entries of both roles were recorded."""

    def read(self) -> Seen:
        """Its tokens. Raises InputError where the file is gone or torn by now."""
        return _rows(self.path, self.row)[0]


@dataclass(frozen=True)
class RunTokens:
    """What a run recorded of its tokens, by step."""

    listed: tuple[Listed, ...]
    torn: tuple[Path, ...] = ()
    """Files that cannot be read."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with records."""
        return tuple(sorted({row.step for row in self.listed}))

    @property
    def problems(self) -> tuple[str, ...]:
        """Ids, in the order in which they were met."""
        return tuple(dict.fromkeys(row.problem for row in self.listed))

    def of(
        self, step: int | None = None, problem: str | None = None, index: int | None = None, author: str | None = None
    ) -> tuple[Listed, ...]:
        """Those that fit; None fits everything."""
        asked = {"step": step, "problem": problem, "index": index, "author": author}
        fixed = {name: value for name, value in asked.items() if value is not None}
        return tuple(row for row in self.listed if all(getattr(row, name) == value for name, value in fixed.items()))

    def find(self, rollout: str) -> Seen | None:
        """By its name; None where there is none that can be read."""
        for row in self.listed:
            if row.rollout == rollout:
                try:
                    return row.read()
                except InputError:
                    return None
        return None


def path_of(folder: Path, step: int) -> Path:
    """`step-00000008.parquet`."""
    return folder / f"step-{step:08d}.parquet"


def write(path: Path, seen: Sequence[Seen]) -> None:
    """One file, whole or not at all. Raises OSError, and what Arrow raises."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        table = pa.Table.from_pylist([_row(one) for one in seen], schema=_schema())
        pq.write_table(table, fresh, compression="zstd", row_group_size=16)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def read(path: Path) -> list[Seen]:
    """Every completion of a file. Raises InputError for a file that is none, is torn or has another schema."""
    return _rows(path)


def load_run(run: Path) -> RunTokens:
    """What a run recorded, in the order it was written; empty where it recorded nothing."""
    listed: list[Listed] = []
    torn = []
    for path in sorted((run / FOLDER).glob("step-*.parquet")):
        try:
            listed += _listed(path)
        except InputError:
            torn.append(path)
    return RunTokens(tuple(listed), tuple(torn))


class TokenFiles:
    """The files of a run that trains. What cannot be written is said once, counted in `failed`, and lost."""

    def __init__(self, run: Path, note: Callable[[str], None]) -> None:
        """Nothing is made before the first step is written."""
        self.folder, self.failed, self._note = run / FOLDER, 0, note

    def write(self, step: int, seen: Sequence[Seen]) -> None:
        """A step's file; one that is there is replaced."""
        import pyarrow as pa

        path = path_of(self.folder, step)
        try:
            write(path, seen)
        except (OSError, pa.ArrowException, ValueError, TypeError, MemoryError) as error:
            self.failed += 1
            if self.failed == 1:
                text = f"{path.name} could not be written ({printable(str(error))}). Training goes on; said once."
                _log.warning("%s", text)
                self._note(text)

    def drop_after(self, step: int) -> None:
        """Forget the steps after `step`: they will be made again."""
        for path in self.folder.glob("step-*.parquet"):
            found = re.fullmatch(r"step-(\d+)\.parquet", path.name)
            if found and int(found[1]) > step:
                try:
                    path.unlink()
                except OSError as error:
                    _log.info("%s not removed: %s", path.name, error)


# -- rows ----------------------------------------------------------------------------------------------------------


def _schema() -> Any:
    import pyarrow as pa

    reals, ids, words = pa.list_(pa.float32()), pa.list_(pa.int32()), pa.list_(pa.string())
    columns: dict[str, Any] = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_INTS, pa.int32())
    columns |= dict.fromkeys(_FLOATS, reals) | dict.fromkeys(_IDS, ids) | dict.fromkeys(_WORDS, words)
    columns |= dict.fromkeys(_TERMS, pa.list_(reals)) | {"student_prompt_text": words, "teacher_prompt_text": words}
    columns |= {f"top_{name}": ids for name in _TOP_IDS} | {f"top_{name}": reals for name in _TOP_FLOATS}
    columns |= {"piece_ids": ids, "piece_text": words, "verdict": pa.string()}
    columns |= {"tokens": pa.int32(), "loss": pa.float64(), "kept": pa.bool_(), "top": pa.int32()}
    return pa.schema(list(columns.items()), metadata={"schema": SCHEMA})


def _row(seen: Seen) -> dict[str, Any]:
    row: dict[str, Any] = {name: _text(getattr(seen, name)) for name in _TEXTS}
    row |= {name: getattr(seen, name) for name in _INTS}
    row |= {name: _single(getattr(seen, name)) for name in _FLOATS}
    row |= {name: np.asarray(getattr(seen, name), dtype=np.int32) for name in _IDS}
    row |= {name: [_text(word) for word in getattr(seen, name)] for name in _WORDS}
    row |= {name: [_single(x) for x in getattr(seen, name)] for name in _TERMS}
    for role, words in zip(("student", "teacher"), seen.prompts, strict=True):
        row[f"{role}_prompt_text"] = [_text(word) for word in words]
    row |= {"piece_ids": list(seen.pieces), "piece_text": [_text(word) for word in seen.pieces.values()]}
    tops = seen.tops
    if tops is not None:
        row |= {f"top_{name}": getattr(tops, name).astype(np.int32).ravel() for name in _TOP_IDS}
        row |= {f"top_{name}": _single(getattr(tops, name)).ravel() for name in _TOP_FLOATS}
    verdict = None if seen.verdict is None else json.dumps(asdict(seen.verdict))
    kept = bool((seen.weights != 0).any())
    top = 0 if tops is None else tops.student_ids.shape[1]
    return row | {"verdict": verdict, "tokens": len(seen), "loss": float(seen.loss.sum()), "kept": kept, "top": top}


def _single(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype=np.float32)


def _text(text: str | None) -> str | None:
    """Half a surrogate pair is no text in any file; it is written as its escape."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{printable(str(path))} cannot be read ({printable(str(error))[:200]}). A run that was killed, or another "
            "program, left it so. Take another step's file."
        ) from error
    said = (file.schema_arrow.metadata or {}).get(b"schema", b"").decode("utf-8", "replace")
    if said != SCHEMA:
        raise InputError(
            f"{printable(str(path))} is no token record of this version. Its schema is '{printable(said)[:60]}', not "
            f"{SCHEMA}. Record the run again."
        )
    return file


def _table(path: Path, columns: Sequence[str] | None = None) -> Any:
    import pyarrow as pa

    try:
        return _open(path).read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{printable(str(path))} is damaged ({printable(str(error))[:200]}). Its pages are not what its end says. "
            "Take another step's file."
        ) from error


def _listed(path: Path) -> Iterator[Listed]:
    for at, row in enumerate(_table(path, _LISTED).to_pylist()):
        verdict = json.loads(row["verdict"])["status"] if row["verdict"] else "unjudged"
        same = {name: row[name] for name in ("rollout", "problem", "step", "index", "author", "stop", "tokens", "kept")}
        yield Listed(path, at, **same, status=verdict, loss=row["loss"], shown=row["top"] > 0)


def _rows(path: Path, only: int | None = None) -> list[Seen]:
    """Every completion of a file, or one: the others stay Arrow's, which is what reading takes long for."""
    table = _table(path)
    if only is not None and only >= len(table):
        raise InputError(f"{printable(str(path))} has {len(table)} rows. It was written again. List the run anew.")
    return [_seen(row) for row in (table if only is None else table.slice(only, 1)).to_pylist()]


def _seen(row: dict[str, Any]) -> Seen:
    n, k = row["tokens"], row["top"]
    columns: dict[str, Any] = {name: row[name] for name in (*_TEXTS, *_INTS)}
    columns |= {name: _reals(row[name], (n,)) for name in _FLOATS}
    columns |= {name: tuple(row[name]) for name in _IDS[:3]}
    columns |= {name: np.asarray(row[name], dtype=np.int64) for name in _IDS[3:]}
    columns |= {name: tuple(row[name]) for name in _WORDS}
    columns |= {name: _reals(row[name], (len(row["terms"]), n)) for name in _TERMS}
    return Seen(
        **columns,
        prompts=(tuple(row["student_prompt_text"]), tuple(row["teacher_prompt_text"])),
        pieces=dict(zip(row["piece_ids"], row["piece_text"], strict=True)),
        tops=_tops(row, n, k) if k else None,
        verdict=None if row["verdict"] is None else Verdict(**json.loads(row["verdict"])),
    )


def _tops(row: dict[str, Any], n: int, k: int) -> Tops:
    columns: dict[str, Any] = {name: np.asarray(row[f"top_{name}"], dtype=np.int64).reshape(n, k) for name in _TOP_IDS}
    for name in _TOP_FLOATS:
        columns[name] = _reals(row[f"top_{name}"], (n,) if name.endswith("tail") else (n, k))
    return Tops(**columns)


def _reals(x: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(x, dtype=np.float64).reshape(shape)
