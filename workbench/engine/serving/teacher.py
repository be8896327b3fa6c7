"""Teachers behind an address: a vLLM server scores what the student wrote, one with the routes of OpenAI writes texts.

What a server can do is asked of the server, before a model is loaded. Its key comes from the environment and goes
nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.divergence import SparseTeacher
from workbench.engine.loading import load_speaker
from workbench.engine.serving.answers import FLOOR, entry_id, seed_of
from workbench.engine.serving.client import Line, Replica, parsed
from workbench.engine.serving.fleet import Fleet
from workbench.engine.serving.naming import Entries, Question, names, said_of
from workbench.engine.teachers import Beside, External, Named, Teaching
from workbench.engine.texts import Pen
from workbench.errors import InputError, ServerError, UsageError
from workbench.records import Capability, Case, Request, Rollout, Sampling

KEY = "OPSD_TEACHER_KEY"
"""The environment variable that holds a server's key."""
WIDTHS = (256, 128, 64, 32, 20, 10, 5)
"""Entries a token that are asked for, until a server gives as many; 20 is vLLM's own limit."""
RARE = -60.0
"""Nats: what is left beside entries that seem to be everything."""


def served_teacher(source: str) -> External:
    """The teacher at an address, as far as it can be asked. Raises UsageError, ServerError, InputError."""
    address, _, name = source.partition("#")
    key = os.environ.get(KEY) or None
    if key and parsed(address).scheme == "http" and not _near(parsed(address).hostname or ""):
        raise UsageError(f"--teacher {address}: the key in {KEY} would be readable on its way. Use https.")
    replica = Replica(address, key=key)
    models = _names(replica)
    vllm = {m["id"]: m for m in models if "max_model_len" in m and m.get("parent") is None}
    chosen = next(iter(vllm.values()), models[0])
    if vllm and (width := _width(replica, chosen["id"])):
        known = names(replica, chosen["id"], width)
        return ScoringServer(address, replica, chosen, name or str(chosen.get("root")), width, known)
    ids = [m["id"] for m in models]
    if (name or (ids[0] if len(ids) == 1 else None)) not in ids:
        raise InputError(
            f"--teacher {address} serves {len(ids)} models, {', '.join(ids[:4])} among them. One teaches. "
            f"Name it behind a #: --teacher {address}#{ids[0]}"
        )
    return WritingServer(address, replica, name or ids[0])


class WritingServer(External):
    """An OpenAI-compatible server: it writes texts, and says nothing about ours."""

    kind = "a server that writes"
    capabilities: frozenset[Capability] = frozenset({"text"})
    anew = True

    def __init__(self, source: str, replica: Replica, model: str) -> None:
        """`model` is its name there."""
        super().__init__(source)
        self._fleet, self.model = Fleet([replica], slots=16), model

    def join(self, beside: Beside) -> None:
        """Any student can read."""

    def facts(self) -> dict[str, Any]:
        """The address and the model's name; no key."""
        mark = hashlib.sha256(f"{self.source}#{self.model}".encode()).hexdigest()
        return {"source": self.source, "kind": self.kind, "model": self.model, "fingerprint": mark}

    def lines(self) -> list[str]:
        """What was found."""
        return [f"{self.model} at {self.source}: {self.kind}; its texts are read with the student's end token"]

    def knows(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        """It scores nothing."""
        return False

    def write(self, requests: Sequence[Request], sampling: Sampling, pen: Pen) -> list[Rollout]:
        """A text a request, under the teacher's own context and template. Raises ServerError."""

        def ask(replica: Replica, place: int, line: Line) -> Rollout:
            answer = replica.post("/v1/chat/completions", self._body(requests[place], sampling), line)
            return _read(answer, replica.url, requests[place], sampling, pen)

        found = self._fleet.spread([[place] for place in range(len(requests))], ask)
        return [found[place] for place in range(len(requests))]

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": list(request.context(Case(request.problem))),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed_of(request.key) & 0x7FFFFFFF,
        }


class ScoringServer(WritingServer):
    """A vLLM server: the likeliest entries of its distribution at every token of ours, and what it gives our token."""

    kind = "a vLLM server"

    def __init__(
        self,
        source: str,
        replica: Replica,
        card: Mapping[str, Any],
        tokenizer: str,
        width: int,
        known: tuple[int | None, str] = (None, ""),
    ) -> None:
        """`tokenizer` is where its tokenizer can be read, `width` the entries it gives a token, `known` as `names`."""
        super().__init__(source, replica, str(card["id"]))
        self.named, self.unnamed = known
        can: list[Capability] = ["text", "logp", "top_k", "named"]
        self.capabilities = frozenset(can if self.named else can[:-1])
        self._tokenizer, self._limit, self.entries = tokenizer, int(card["max_model_len"]), width

    def join(self, beside: Beside) -> None:
        """Prove that it speaks the student's tokens. Raises InputError."""
        from transformers import AutoConfig

        try:
            speaker = load_speaker(self._tokenizer, beside.place.chat_template)
            rows = int(AutoConfig.from_pretrained(self._tokenizer).get_text_config().vocab_size)
        except (InputError, OSError, ValueError) as error:
            raise InputError(
                f"--teacher {self.source}: the tokenizer of {self._tokenizer} cannot be read here. Entries are "
                f"compared one by one, so they must be shown to be the same. Name one: --teacher {self.source}#FOLDER"
            ) from error
        self.speaker = replace(speaker, max_length=min(speaker.max_length, self._limit))
        self._meet(beside, speaker.tokenizer, rows)
        self._home, self._student = beside.place.home, beside.speaker

    def lines(self) -> list[str]:
        """What it can do, and that it speaks our tokens."""
        assert self.proof is not None
        return [
            f"{self.model} at {self.source}: the {self.entries} likeliest tokens and the written one; takes "
            f"{self._limit} tokens",
            f"and whatever tokens are named, {self.named} at most"
            if self.named
            else f"tokens cannot be named to it, so none of the student's likeliest: {self.unnamed}",
            f"tokenizer proven: {self.proof.text()}",
            self._end_line(self._student),
        ]

    def knows(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        """Whatever fits."""
        return len(prompt) + len(completion) < self._limit

    def check(self, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> None:
        """Raises InputError for another temperature than 1 and for what does not fit."""
        if temperature != 1.0:
            raise InputError(
                f"{self.source} gives log-probs at temperature 1, and the run scores at {temperature}. What lies "
                "outside its entries cannot be rescaled. Add --set scoring_temperature=1.0, or give the model itself."
            )
        if not self.knows(prompt, completion):
            raise InputError(
                f"{self.source} takes {self._limit} tokens, this prompt and completion have "
                f"{len(prompt) + len(completion)}. Start it with a larger --max-model-len."
            )

    def recall(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
    ) -> Teaching:
        """Asked now, in parallel; the tail is what the entries leave. Raises InputError as `check`, ServerError."""
        texts = self._checked(prompts, completions, temperature)

        def ask(replica: Replica, place: int, line: Line) -> list[Entries]:
            ids = [*prompts[place], *texts[place]]
            body = {"model": self.model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": self.entries}
            answer = replica.post("/v1/completions", body, line)
            return _scored(answer, replica.url, ids, len(prompts[place]))

        found = self._fleet.spread([[place] for place in range(len(texts))], ask)
        assert self.entries is not None, "set when it was made"
        return self._sparse([row for place in range(len(texts)) for row in found[place]], self.entries)

    def recall_named(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float,
        named: Named,
    ) -> SparseTeacher:
        """The same for the entries that are named, and those beside them. Raises InputError, ServerError."""
        texts = self._checked(prompts, completions, temperature)
        rows = torch.split(self._swapped(named.ids.cpu()), [len(text) for text in texts])

        def ask(replica: Replica, place: int, line: Line) -> list[Entries]:
            question = Question(prompts[place], texts[place], rows[place].tolist(), named.beside)
            return said_of(replica, self.model, question, line)

        found = self._fleet.spread([[place] for place in range(len(texts))], ask)
        width = named.ids.shape[1] + named.beside
        return replace(self._sparse([row for place in range(len(texts)) for row in found[place]], width), ranked=False)

    def _checked(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
    ) -> list[Sequence[int]]:
        """The completions as its own."""
        texts = [self._as_its_own(completion) for completion in completions]
        for prompt, text in zip(prompts, texts, strict=True):
            self.check(prompt, text, temperature)
        return texts

    def _swapped(self, ids: Tensor) -> Tensor:
        """Each role's end in the other's place; everything else means the same to both."""
        if self.exchanged is None:
            return ids
        theirs, mine = self.exchanged
        return torch.where(ids == theirs, mine, torch.where(ids == mine, theirs, ids))

    def _as_its_own(self, completion: Sequence[int]) -> Sequence[int]:
        """Where it ends with another token than the student, that is what it is asked about."""
        if self.exchanged and completion and completion[-1] == self.exchanged[1]:
            return [*completion[:-1], self.exchanged[0]]
        return completion

    def _sparse(self, rows: Sequence[Entries], k: int) -> SparseTeacher:
        ids = torch.zeros(len(rows), k, dtype=torch.long)
        logp = torch.full((len(rows), k), -math.inf)
        for i, (entries, _) in enumerate(rows):
            ranked = sorted(entries.items(), key=lambda entry: -entry[1])[:k]
            ids[i, : len(ranked)] = torch.tensor([token for token, _ in ranked])
            logp[i, : len(ranked)] = torch.tensor([value for _, value in ranked])
        ids = self._swapped(ids)
        rest = -torch.expm1(logp.double().logsumexp(-1).clamp(max=-1e-12))
        home = self._home
        return SparseTeacher(
            ids=ids.to(home),
            logp=logp.to(home),
            rest="bucket",
            tail_logp=rest.log().clamp(min=RARE).float().to(home),
            target_logp=torch.tensor([target for _, target in rows]).to(home),
        )


def _scored(answer: Any, url: str, ids: Sequence[int], start: int) -> list[Entries]:
    """The rows of the completion. Raises ServerError for an answer that is none."""
    try:
        (choice,) = answer["choices"]
        said = choice["prompt_logprobs"]
        if len(said) != len(ids):
            raise ValueError(f"{len(said)} positions for {len(ids)} tokens")
        rows = []
        for token, row in zip(ids[start:], said[start:], strict=True):
            entries = {entry_id(entry): min(float(value["logprob"]), 0.0) for entry, value in row.items()}
            if not all(value > FLOOR for value in entries.values()):  # false for NaN too
                raise ValueError("a log-prob that is no number")
            rows.append((entries, entries[token]))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ServerError(
            f"{url}/v1/completions answered what are no log-probs of a prompt ({type(error).__name__}: {error}). "
            "Nothing of it is used. Is it the vLLM server that answered at first?"
        ) from error
    return rows


def _read(answer: Any, url: str, request: Request, sampling: Sampling, pen: Pen) -> Rollout:
    """A text as a rollout; one that was cut has no end. Raises ServerError for an answer that is none."""
    try:
        (choice,) = answer["choices"]
        text, cut = choice["message"]["content"], choice["finish_reason"] == "length"
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(f"it ended by {choice['finish_reason']!r}, which is no end of a text")
        if not isinstance(text, str):
            raise TypeError(f"a content that is {type(text).__name__}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(
            f"{url}/v1/chat/completions answered no text ({type(error).__name__}: {error}). Is it OpenAI-compatible?"
        ) from error
    rollout = pen.rollout(text, request, "teacher", sampling)
    if cut and rollout.stop == "stop":
        return replace(rollout, tokens=rollout.tokens[:-1], stop="length")
    return rollout


def _names(replica: Replica) -> list[dict[str, Any]]:
    """The cards of its models. Raises ServerError where there is none."""
    answer = replica.get("/v1/models")
    try:
        found = [card for card in answer["data"] if isinstance(card["id"], str)]
    except (KeyError, TypeError) as error:
        raise ServerError(f"{replica.url}/v1/models lists no models. Is it OpenAI-compatible? Check it.") from error
    if not found:
        raise ServerError(f"{replica.url}/v1/models is empty. Nobody could teach. Start the server with a model.")
    return found


def _width(replica: Replica, model: str) -> int | None:
    """How many entries a token it gives about a prompt; None where it gives none."""
    for width in WIDTHS:
        with contextlib.suppress(ServerError):
            answer = replica.post(
                "/v1/completions", {"model": model, "prompt": [1, 2], "max_tokens": 1, "prompt_logprobs": width}
            )
            if len(_scored(answer, replica.url, [1, 2], 1)) == 1:
                return width
    return None


def _near(host: str) -> bool:
    """Whether what is sent there stays on this machine or in a private network, told by the address alone."""
    if host == "localhost":
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False
