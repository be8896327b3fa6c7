"""Reading the parquet that DistillKit's sampler writes: compressed log-probs and packed ids of the likeliest tokens.

A row is a whole conversation, `input_ids`; entry j of `compressed_logprobs` and `bytepacked_indices` says what was
likely *after* token j, so there is one entry fewer than tokens. The layout is Arcee's (github.com/arcee-ai/DistillKit,
`distillkit/compression`, read at 897bd13), this reader is our own. Bytes of an entry, in this order:

    exact_k values                      as exact_dtype
    coefficients of polynomial_terms    as term_dtype: the other k - exact_k values are about sum_i c_i t^i
    a residual bin each                 a scale as scale_dtype, then num_elements integers of element_bits, high bit
                                        first, offset so that 0 is the lowest, padded to a whole byte

With `delta_encoding` all k values are differences from the one before. Ids are integers of ceil(log2 d) bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engine.cache_format import ids_hash
from workbench.errors import InputError

_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Bin:
    """Residuals stored as integers with one scale."""

    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class Compression:
    """What the columns were written with; names are DistillKit's."""

    d: int
    """Entries of the vocabulary."""
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    normalize_t: bool = False

    @classmethod
    def read(cls, path: str) -> Compression:
        """From JSON or YAML, also where it stands under `logprob_compressor`. Raises InputError."""
        import yaml  # comes with transformers; JSON is YAML too

        try:
            data = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
            data = data.get("teacher", data).get("logprob_compressor", data)
            data.pop("error_diffusion", None)  # how it was written, not how it is read
            data["polynomial_terms"] = tuple(data.get("polynomial_terms") or ())
            data["residual_bins"] = tuple(Bin(**each) for each in data.get("residual_bins") or ())
            return cls(**data)
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise InputError(
                f"{path} does not say how the columns were compressed ({error}). It holds d, k, exact_k and the like, "
                "as DistillKit's logprob_compressor has them. Give that file."
            ) from error

    def values(self, data: bytes) -> np.ndarray:
        """(k,) log-probs, nats, likeliest first. Raises InputError for too few bytes."""
        stream = _Stream(data)
        exact = stream.reals(self.exact_k, self.exact_dtype)
        coefficients = stream.reals(len(self.polynomial_terms), self.term_dtype)
        rest = np.zeros(self.k - self.exact_k)
        at = 0
        for each in self.residual_bins:
            scale = stream.reals(1, each.scale_dtype)[0]
            whole = stream.integers(each.num_elements, each.element_bits)
            lowest = -(2 ** (each.element_bits - 1))
            signed = whole * 2.0 - 1.0 if each.element_bits == 1 else whole + float(lowest)
            rest[at : at + each.num_elements] = signed * scale
            at += each.num_elements
        values = np.concatenate([exact, rest + self._polynomial(coefficients)])
        return np.cumsum(values) if self.delta_encoding else values

    def _polynomial(self, coefficients: np.ndarray) -> np.ndarray:
        n = self.k - self.exact_k
        t = np.linspace(0.0, 1.0, n) if self.normalize_t else np.arange(n, dtype=np.float64)
        named = {"sqrt": np.sqrt, "exp": np.exp}
        terms = [named[term](t) if isinstance(term, str) else t**term for term in self.polynomial_terms]
        return sum((c * term for c, term in zip(coefficients, terms, strict=True)), np.zeros(n))

    def ids(self, data: bytes) -> np.ndarray:
        """(k,) token ids."""
        return _Stream(data).integers(self.k, max(1, math.ceil(math.log2(self.d))))


class _Stream:
    """Bytes read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _take(self, n: int) -> bytes:
        if len(self._data) < n:
            raise InputError(
                f"a row of DistillKit's ends {n - len(self._data)} bytes early. It was compressed with other settings. "
                "Give its own --compression."
            )
        taken, self._data = self._data[:n], self._data[n:]
        return taken

    def reals(self, n: int, dtype: str) -> np.ndarray:
        raw = self._take(n * _WIDTHS[dtype])
        if dtype == "bfloat16":  # the upper half of a float32
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return np.frombuffer(raw, f"<f{_WIDTHS[dtype]}").astype(np.float64)

    def integers(self, n: int, bits: int) -> np.ndarray:
        raw = np.frombuffer(self._take((n * bits + 7) // 8), np.uint8)
        powers = 2 ** np.arange(bits - 1, -1, -1, dtype=np.int64)
        return np.unpackbits(raw)[: n * bits].reshape(n, bits).astype(np.int64) @ powers


def taken_over(
    path: str, compression: Compression, prompts: Mapping[str, Sequence[int]], stops: frozenset[int]
) -> list[dict[str, Any]]:
    """Rows of a cache from a parquet of DistillKit's: the conversations that start with one of the prompts.

    Log-probs of the written tokens and entropies are not in it. Raises InputError for a file that is none of its.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["input_ids", "compressed_logprobs", "bytepacked_indices"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"{path} has no columns of DistillKit's ({error}). Give a parquet its sampler wrote."
        ) from error
    by_length = sorted(prompts.items(), key=lambda item: -len(item[1]))
    rows = []
    for row in table.to_pylist():
        ids = list(row["input_ids"])
        name = next((name for name, prompt in by_length if ids[: len(prompt)] == list(prompt)), None)
        if name is None:
            continue
        if len(row["compressed_logprobs"]) != len(ids) - 1:
            raise InputError(
                f"{path}: {len(row['compressed_logprobs'])} entries for {len(ids)} tokens. One fewer is due."
            )
        start = len(prompts[name])
        names = {"problem": name, "prompt_sha256": ids_hash(ids[:start])}
        rows.append({**names, **_row(row, ids, start, compression, stops)})
    return rows


def _row(
    row: Mapping[str, Any], ids: list[int], start: int, compression: Compression, stops: frozenset[int]
) -> dict[str, Any]:
    end = next((i + 1 for i in range(start, len(ids)) if ids[i] in stops), len(ids))
    before = range(start - 1, end - 1)  # what is known after token j is about token j + 1
    logp = [compression.values(bytes(row["compressed_logprobs"][j])) for j in before]
    found = [compression.ids(bytes(row["bytepacked_indices"][j])) for j in before]
    mass = [min(float(np.exp(values).sum()), 1.0 - 1e-9) for values in logp]
    return {
        "tokens": ids[start:end],
        "stop": "stop" if ids[end - 1] in stops else "length",
        "ids": [int(i) for each in found for i in each],
        "logp": [float(x) for each in logp for x in each],
        "tail_logp": [math.log1p(-m) for m in mass],
        "target_logp": None,
        "entropy": None,
    }
