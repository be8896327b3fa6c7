"""A teacher that was asked once: what it said about recorded completions, read back as if it spoke now."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.divergence import Head, Scored, SparseTeacher
from workbench.engine.cache_format import (
    MANIFEST,
    Key,
    Manifest,
    file_hash,
    files,
    footer_hash,
    open_rows,
    unpacked,
)
from workbench.engine.loading import load_tokenizer
from workbench.engine.speakers import Speaker
from workbench.engine.teachers import Beside, External, Teaching
from workbench.engine.texts import Pen
from workbench.engine.vocabularies import exchange, tokenizer_hash
from workbench.errors import InputError
from workbench.records import Capability, Request, Rollout, Sampling

__all__ = ["MANIFEST", "Cached"]

_KEPT = 8
"""Groups of rows kept in memory."""


class Cached(External):
    """A folder that `python -m workbench.cache_teacher` wrote."""

    def __init__(self, source: str) -> None:
        """Reads the manifest and where each completion lies. Raises InputError for files of different teachers."""
        super().__init__(source)
        self.folder = Path(source).expanduser()
        self.manifest = Manifest.read(self.folder)
        self._files = [open_rows(path, self.manifest.identity) for path in files(self.folder)]
        self._footers = [footer_hash(path) for path in files(self.folder)]
        self._places: dict[Key, tuple[int, int, int]] = {}
        self._prompts: dict[tuple[str, bool], set[str]] = {}
        self._written: dict[tuple[str, int], tuple[int, int, int]] = {}
        self._groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self._stops = frozenset(self.manifest.stop_ids)
        self._index()

    @property
    def kind(self) -> str:  # type: ignore[override]
        """In words."""
        identity = self.manifest.identity
        return "a cache of hidden states" if identity.kind == "hidden" else f"a cache of its {identity.top_k} likeliest"

    @property
    def capabilities(self) -> frozenset[Capability]:  # type: ignore[override]
        """Hidden states are everything there is to know about a completion."""
        given: set[Capability] = {"logp", "entropies", "top_k"} if self.manifest.written else {"top_k"}
        if self.manifest.identity.kind == "hidden":
            given |= {"named", "logits"}
        if self._written:
            given.add("text")
        return frozenset(given)

    @property
    def entries(self) -> int | None:  # type: ignore[override]
        """The K it was asked for."""
        return self.manifest.identity.top_k

    def _index(self) -> None:
        columns = ["problem", "index", "author", "prompt_sha256", "tokens"]
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                for at, row in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                    key = self._key(row)
                    self._places[key] = place = (number, group, at)
                    self._prompts.setdefault((key.body, key.ended), set()).add(key.prompt)
                    if row["author"] == "teacher":
                        self._written[row["problem"], row["index"]] = place

    def _key(self, row: dict[str, Any]) -> Key:
        body = Key.of((), row["tokens"], self._stops)
        return Key(row["prompt_sha256"], body.body, body.ended)

    def _row(self, place: tuple[int, int, int]) -> dict[str, Any]:
        number, group, at = place
        if (number, group) not in self._groups:
            while len(self._groups) >= _KEPT:
                del self._groups[next(iter(self._groups))]
            self._groups[number, group] = self._files[number].read_row_group(group).to_pylist()
        return self._groups[number, group][at]

    # -- External --------------------------------------------------------------------------------------------------

    def join(self, beside: Beside) -> None:
        """Prove its tokenizer the student's, and read its head. Raises InputError for changed files."""
        manifest, place = self.manifest, beside.place
        tokenizer = load_tokenizer(str(self.folder / "tokenizer"))
        if tokenizer_hash(tokenizer) != manifest.identity.tokenizer_sha256:
            raise InputError(
                f"{self.folder / 'tokenizer'}: this is not the tokenizer the cache was made with. Its hash differs "
                "from tokenizer_sha256 in teacher.json. Make the cache again."
            )
        self.speaker = Speaker.make(tokenizer, self._stops, manifest.max_length, self.source)
        self._meet(beside, tokenizer, manifest.rows)
        self._student, self._home = beside.speaker, place.home
        self.head = self._read_head() if manifest.identity.kind == "hidden" else None

    def _read_head(self) -> Head:
        from safetensors.torch import load_file

        path = self.folder / "head.safetensors"
        if not path.is_file() or file_hash(path) != self.manifest.head_sha256:
            raise InputError(
                f"{path} is not the head the cache was made with. Hidden states mean nothing without it. "
                "Make the cache again."
            )
        tensors = load_file(str(path), device=str(self._home))
        head = Head(tensors["weight"], tensors.get("bias"), self.manifest.scale, self.manifest.softcap)
        return exchange(head, self.exchanged)

    def facts(self) -> dict[str, Any]:
        """Whose words these are."""
        identity = self.manifest.identity
        return {
            "source": self.source,
            "kind": self.kind,
            "model": identity.model,
            "fingerprint": hashlib.sha256(repr([identity, *self._footers]).encode()).hexdigest(),
            "weights_sha256": identity.weights_sha256,
            "stop_ids": sorted(self._stops),
            "chat_template": self._spoken().tokenizer.chat_template,
        }

    def lines(self) -> list[str]:
        """Model, completions, tokenizer, ends."""
        assert self.proof is not None
        identity = self.manifest.identity
        at = (
            "read at any temperature"
            if identity.temperature is None
            else f"taken at temperature {identity.temperature}"
        )
        return [
            f"{self.source}: {self.kind} of {identity.model} on {len(self._places)} completions, {at}",
            f"tokenizer proven: {self.proof.text()}",
            self._end_line(self._student),
        ]

    def knows(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        """Whether this completion was recorded behind this prompt."""
        return self._student_key(prompt, completion) in self._places

    def check(self, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> None:
        """Raises InputError naming the field: temperature, prompt or completion."""
        recorded = self.manifest.identity.temperature
        if recorded is not None and recorded != temperature:
            raise InputError(
                f"{self.source}: temperature {recorded} in the cache, {temperature} in the run. Log-probs of the "
                f"likeliest entries hold at one temperature. Run with --temperature {recorded}, or cache again."
            )
        key = self._student_key(prompt, completion)
        if key in self._places:
            return
        if self._prompts.get((key.body, key.ended)):
            raise InputError(
                f"{self.source}: prompt {key.prompt[:12]} of this completion is not the one it was recorded behind. "
                "What the teacher is shown has changed: the recipe, --chat-template or the problem. Cache again."
            )
        raise InputError(
            f"{self.source}: a completion of {len(completion)} tokens is not in the cache. It holds "
            f"{len(self._places)} others. Cache it with the same --problems, --recipe and --max-new-tokens."
        )

    def _student_key(self, prompt: Sequence[int], completion: Sequence[int]) -> Key:
        return Key.of(prompt, completion, self._student.stop_ids)

    def recall(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
    ) -> Teaching:
        """As recorded, in the order asked."""
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            self.check(prompt, completion, temperature)
            rows.append(self._row(self._places[self._student_key(prompt, completion)]))
        if self.head is not None:
            identity = self.manifest.identity
            states = [unpacked(row["states"], identity.dtype, self.manifest.width) for row in rows]
            head = replace(self.head, temperature=temperature)
            return Scored(torch.cat(states).to(self._home, self.head.weight.dtype), head)
        return self._sparse(rows)

    def _sparse(self, rows: Sequence[dict[str, Any]]) -> Teaching:
        def flat(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.cat([torch.tensor(row[name], dtype=dtype) for row in rows]).to(self._home)

        width = self.manifest.identity.top_k
        assert width is not None, "a cache of the likeliest says how many"
        ids = flat("ids", torch.long)
        if self.exchanged is not None:
            theirs, mine = self.exchanged
            ids = torch.where(ids == theirs, mine, torch.where(ids == mine, theirs, ids))
        return SparseTeacher(
            ids=ids.view(-1, width),
            logp=flat("logp").view(-1, width),
            rest="bucket",
            tail_logp=flat("tail_logp"),
            entropy=flat("entropy") if self.manifest.written else None,
            target_logp=flat("target_logp") if self.manifest.written else None,
        )

    def write(self, requests: Sequence[Request], sampling: Sampling, pen: Pen) -> list[Rollout]:
        """The completions that the teacher wrote when it was asked."""
        return [self._rollout(request, sampling, pen) for request in requests]

    def _rollout(self, request: Request, sampling: Sampling, pen: Pen) -> Rollout:
        place = self._written.get((request.problem.id, request.index))
        if place is None:
            raise InputError(
                f"{self.source} holds no text number {request.index + 1} for problem '{request.problem.id}'. Each "
                "rollout is one text it wrote. Lower --group, or cache more."
            )
        row = self._row(place)
        tokens, ended = list(row["tokens"]), bool(row["tokens"]) and row["tokens"][-1] in self._stops
        if len(tokens) > sampling.max_new_tokens:
            raise InputError(
                f"{self.source}: a text of {len(tokens)} tokens for problem '{request.problem.id}'. --max-new-tokens "
                f"{sampling.max_new_tokens} would cut it. Use --max-new-tokens {len(tokens)}."
            )
        body = tokens[:-1] if ended else tokens
        text = str(pen.student.tokenizer.decode(body, skip_special_tokens=False))
        tokens = [*body, pen.student.end] if ended else body
        return Rollout(
            problem=request.problem,
            author="teacher",
            tokens=tuple(tokens),
            text=text,
            logprobs=None,
            stop="stop" if ended else "length",
            weights_version=pen.weights_version,
            index=request.index,
        )
