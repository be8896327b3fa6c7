"""The files of a teacher cache: whose it is, and what was said about each completion.

    DIR/teacher.json      whose words these are: `Identity`, and the facts a student needs (end tokens, limit, head)
    DIR/tokenizer/        its tokenizer with its chat template
    DIR/head.safetensors  for hidden states: the rows of its head that mean tokens
    DIR/rows-00000.parquet ...  a row a completion; every file names the identity again

A row has `problem`, `index`, `author`, `stop`, `prompt_sha256` (of the teacher's prompt ids), `tokens` (the completion
with the teacher's end token) and, for hidden states, `states` (n h values, little-endian, bfloat16 or float32), else
`ids` and `logp` (n K, nats, likeliest first), `tail_logp` (log of the mass outside), `target_logp` (of the token that
was written) and `entropy`, each n.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.errors import InputError

MANIFEST = "teacher.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_GROUP = 16
"""Completions read at once."""


@dataclass(frozen=True)
class Identity:
    """Whose words: two caches with equal identities can lie in one folder, and nothing else can."""

    model: str
    weights_sha256: str
    tokenizer_sha256: str
    kind: Literal["hidden", "top_k"]
    temperature: float | None
    """At which log-probs were taken; None for hidden states, which can be read at any."""
    top_k: int | None
    dtype: Literal["float32", "bfloat16"]
    """Type of stored hidden states."""

    def refuse(self, other: Identity, what: str) -> None:
        """Raises InputError naming the first field in which `other`, found in `what`, differs."""
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if mine != theirs:
                raise InputError(
                    f"{what} was made with another {name}: {theirs!r}, not {mine!r}. Words of two teachers do not mix. "
                    "Make a new cache: python -m workbench.cache_teacher --out ANOTHER"
                )


@dataclass(frozen=True)
class Manifest:
    """`teacher.json`."""

    identity: Identity
    size: int
    """Entries of the vocabulary."""
    rows: int
    """Rows of the model's own head, padding included."""
    width: int
    stop_ids: tuple[int, ...]
    max_length: int
    scale: float = 1.0
    softcap: float | None = None
    head_sha256: str | None = None
    written: bool = True
    """Whether the log-probs of the written tokens and the entropies are there."""

    def write(self, folder: Path) -> None:
        """By rename."""
        fresh = folder / f".{MANIFEST}"
        fresh.write_text(json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises InputError for a file that is none."""
        path = folder / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != 1:
                raise InputError(f"{path} is of a later version. This one reads format 1. Update the workbench.")
            data |= {"identity": Identity(**data["identity"]), "stop_ids": tuple(data["stop_ids"])}
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is no cache of a teacher ({error}). Make it again.") from error


@dataclass(frozen=True)
class Key:
    """What a completion is found by: the teacher's prompt, and the completion without its end token."""

    prompt: str
    body: str
    ended: bool

    @classmethod
    def of(cls, prompt: Sequence[int], tokens: Sequence[int], stops: frozenset[int]) -> Key:
        """The end token is left out: a student may have another."""
        ended = bool(tokens) and tokens[-1] in stops
        return cls(ids_hash(prompt), ids_hash(tokens[:-1] if ended else tokens), ended)


def ids_hash(ids: Sequence[int]) -> str:
    """sha256 of token ids."""
    return hashlib.sha256(",".join(map(str, ids)).encode("ascii")).hexdigest()


def schema(identity: Identity) -> Any:
    """The columns, with the identity in the file's metadata."""
    import pyarrow as pa

    reals, whole = pa.list_(pa.float32()), pa.list_(pa.int32())
    names = {name: pa.string() for name in ("problem", "author", "stop", "prompt_sha256")}
    columns = {**names, "index": pa.int32(), "tokens": whole}
    if identity.kind == "hidden":
        columns["states"] = pa.large_binary()
    else:
        columns |= {"ids": whole, "logp": reals, "tail_logp": reals, "target_logp": reals, "entropy": reals}
    metadata = {"teacher": json.dumps(asdict(identity), sort_keys=True)}
    return pa.schema(list(columns.items()), metadata=metadata)


def write_rows(folder: Path, identity: Identity, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One more file of rows, by rename."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = len(files(folder))
    path = folder / f"rows-{number:05d}.parquet"
    fresh = folder / f".{path.name}"
    table = pa.Table.from_pylist(list(rows), schema=schema(identity))
    pq.write_table(table, fresh, compression="zstd", row_group_size=_GROUP)
    os.replace(fresh, path)
    return path


def files(folder: Path) -> list[Path]:
    """The files of rows, in order."""
    return sorted(folder.glob("rows-*.parquet"))


def open_rows(path: Path, identity: Identity) -> Any:
    """A parquet file of this teacher's. Raises InputError where it cannot be read or is another teacher's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        theirs = Identity(**json.loads(file.schema_arrow.metadata[b"teacher"]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}). Make the cache again.") from error
    identity.refuse(theirs, str(path))
    return file


def packed(states: Tensor, dtype: str) -> bytes:
    """Hidden states as bytes."""
    kept = states.detach().to("cpu", DTYPES[dtype]).contiguous()
    return bytes(kept.view(torch.uint8).numpy().tobytes())


def unpacked(data: bytes, dtype: str, width: int) -> Tensor:
    """(n, width) hidden states from bytes."""
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).view(-1, width)


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def footer_hash(path: Path) -> str:
    """sha256 of a parquet file's footer (places, sizes, bounds of every column) and length: no pass over the data."""
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(end - 8)
        stream.seek(end - 8 - int.from_bytes(stream.read(4), "little"))
        return hashlib.sha256(stream.read() + end.to_bytes(8, "little")).hexdigest()
