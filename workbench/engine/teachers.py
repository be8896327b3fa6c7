"""Teachers that are not the student: another model, a cache of what one said, or texts it wrote.

`invite` says what `--teacher` means without loading a model, so that a recipe that asks too much is refused at once;
`join` loads it beside a student, proves the tokenizers equal and says what the engine needs to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from workbench.divergence import Scored, SparseTeacher
from workbench.engine.capabilities import EVERYTHING
from workbench.engine.heads import head_of
from workbench.engine.loading import Loaded, load, pick_dtype
from workbench.engine.modes import without_dropout
from workbench.engine.roles import Outside, fingerprint
from workbench.engine.speakers import Speaker, exchanged
from workbench.engine.texts import Pen, Texts
from workbench.engine.vocabularies import Proof, exchange, prove, sliced
from workbench.errors import InputError
from workbench.records import Capability, Request, Rollout, Sampling

Teaching: TypeAlias = Scored | SparseTeacher
"""What a teacher says about rows of tokens: its hidden states with their head, or a `SparseTeacher`."""


@dataclass(frozen=True)
class Place:
    """Where another model computes, and in what type."""

    home: torch.device
    """Where the student is: what the teacher says ends up there."""
    device: torch.device
    dtype: str = "auto"
    chat_template: str | None = None
    """A Jinja file for a tokenizer that has no template."""


@dataclass(frozen=True)
class Beside:
    """The student as a teacher meets it."""

    loaded: Loaded
    texts: Sequence[str]
    """The run's own texts, on which both tokenizers are compared."""
    place: Place

    @property
    def speaker(self) -> Speaker:
        """How the student is spoken to."""
        return Speaker.of(self.loaded.model, self.loaded.tokenizer, self.loaded.source)

    @property
    def rows(self) -> int:
        """Rows of its head."""
        return len(head_of(self.loaded.model).weight)


@dataclass(frozen=True, eq=False)
class Named:
    """Entries of the vocabulary at each of N tokens, row after row as `Engine.score` has them."""

    ids: Tensor
    """(N, K), each once a row."""
    beside: int = 0
    """The teacher's own likeliest that are compared too."""


class External(ABC):
    """A teacher that is not the student."""

    kind: str
    capabilities: frozenset[Capability]
    recorded = True
    anew = False
    """A recorded teacher that answers for completions nobody recorded: a server."""
    entries: int | None = None
    named: int | None = None
    """Entries a token that can be named to one that answers; None: it gives all, or its own alone."""
    unnamed = ""
    """Why none can be named."""

    def __init__(self, source: str) -> None:
        """`source` is what --teacher said."""
        self.source = source
        self.proof: Proof | None = None
        self.speaker: Speaker | None = None
        """None: nobody can render a prompt for it."""
        self.exchanged: tuple[int, int] | None = None
        self.weights = Outside(None, None, torch.device("cpu"))

    @abstractmethod
    def join(self, beside: Beside) -> None:
        """Get ready to teach this student. Raises InputError where it cannot."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What run.json keeps; `fingerprint` is what a resumed run must find again."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What a person is told before step 1."""

    def recall(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
    ) -> Teaching:
        """What it said about these completions. Raises InputError for one it does not know."""
        raise InputError(f"{self.kind} says nothing about given tokens. {self.source} cannot score. Give a model.")

    def recall_named(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float,
        named: Named,
    ) -> SparseTeacher:
        """What it says of the entries that are named, a row a token. Raises InputError where it cannot be asked."""
        raise InputError(f"{self.kind} is told no entries. {self.source} has its own alone. Give a model.")

    def knows(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        """Whether it can say something about this completion."""
        return not self.recorded

    def check(self, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> None:
        """Raises InputError naming what differs where it knows nothing about this completion."""
        if not self.knows(prompt, completion):
            raise InputError(f"{self.kind} says nothing about given tokens. {self.source} cannot score. Give a model.")

    def write(self, requests: Sequence[Request], sampling: Sampling, pen: Pen) -> list[Rollout]:
        """Texts it wrote once, for teachers that cannot write now."""
        raise InputError(f"{self.kind} holds no texts. {self.source} cannot write. Give a model, or texts.")

    def _meet(self, beside: Beside, tokenizer: Any, rows: int) -> None:
        student = beside.speaker
        self.proof = prove(student.tokenizer, tokenizer, beside.texts, (beside.rows, rows), self.source)
        self.exchanged = exchanged(self._spoken(), student)

    def _spoken(self) -> Speaker:
        assert self.speaker is not None, "set before the tokenizers meet"
        return self.speaker

    def _end_line(self, student: Speaker) -> str:
        if self.exchanged is None:
            return "both end a turn with the same token"
        theirs, mine = (student.tokenizer.convert_ids_to_tokens(i) for i in self.exchanged)
        return f"it ends with {theirs}, the student with {mine}: they count as one, and the student learns its own"


class Local(External):
    """Another checkpoint on this machine: its own width, head, template, end tokens, limit and type."""

    kind = "another model"
    capabilities = EVERYTHING
    recorded = False

    def join(self, beside: Beside) -> None:
        """Load it and prove the tokenizers equal."""
        place = beside.place
        dtype = pick_dtype(place.dtype, place.device, adapter=True)  # it does not train: small on a GPU
        self.loaded = load(self.source, dtype=dtype, fallback_template=place.chat_template)
        model = self.loaded.model.requires_grad_(False).eval()
        if not getattr(model, "is_quantized", False):  # a quantised model was put in its place when it was read
            model = model.to(place.device)
        without_dropout(model)
        self.speaker = Speaker.of(model, self.loaded.tokenizer, self.loaded.source)
        head = head_of(model)
        self._meet(beside, self.loaded.tokenizer, len(head.weight))
        assert self.proof is not None
        head = exchange(sliced(head, self.proof.size), self.exchanged)
        head = replace(head, weight=head.weight.detach().to(place.home), bias=_moved(head.bias, place.home))
        self.weights = Outside(model, head, place.device)
        self.fingerprint = fingerprint(model)
        self._student = beside.speaker

    def facts(self) -> dict[str, Any]:
        """Where it came from and its weights' hash."""
        return {
            "source": self.loaded.source,
            "kind": self.kind,
            "revision": self.loaded.revision,
            "fingerprint": self.fingerprint,
            "stop_ids": sorted(self._spoken().stop_ids),
            "chat_template": self._spoken().tokenizer.chat_template,
        }

    def lines(self) -> list[str]:
        """Model, tokenizer, ends."""
        assert self.proof is not None
        with self.weights.module() as model:
            size = sum(p.numel() for p in model.parameters())
            kind = str(next(model.parameters()).dtype).removeprefix("torch.")
        limit = self._spoken().max_length
        return [
            f"{self.loaded.source} ({size / 1e6:.1f}M, {kind}, {self.weights.device}, takes {limit} tokens)",
            *self.loaded.notes,
            f"tokenizer proven: {self.proof.text()}",
            self._end_line(self._student),
        ]


class Told(External):
    """Texts of a teacher nobody can ask any more."""

    kind = "a file of texts"
    capabilities = frozenset({"text"})

    def __init__(self, source: str) -> None:
        """Reads the file. Raises InputError."""
        super().__init__(source)
        self._texts = Texts.read(source)

    def join(self, beside: Beside) -> None:
        """Any student can read."""

    def facts(self) -> dict[str, Any]:
        """The file and its hash."""
        return {"source": self.source, "kind": self.kind, "fingerprint": self._texts.sha256}

    def lines(self) -> list[str]:
        """How many there are."""
        groups = (*self._texts.by_id.values(), *self._texts.by_question.values())
        count = sum(map(len, groups))
        return [f"{self.source}: {count} texts for {len(groups)} problems, read with the student's end token"]

    def write(self, requests: Sequence[Request], sampling: Sampling, pen: Pen) -> list[Rollout]:
        """The index-th text of each problem."""
        return [pen.rollout(self._texts.of(request), request, "teacher", sampling) for request in requests]


def invite(source: str) -> External:
    """The teacher that --teacher names, not loaded yet. Raises InputError for a file or folder that is none.

    A server is asked what it can do: ServerError where it does not answer.
    """
    from workbench.engine.cached_teacher import MANIFEST, Cached

    path = Path(source).expanduser()
    if source.startswith(("http://", "https://")):
        from workbench.engine.serving.teacher import served_teacher

        return served_teacher(source)
    if source.endswith((".jsonl", ".jsonl.gz")):
        return Told(source)
    return Cached(source) if (path / MANIFEST).is_file() else Local(source)


def run_texts(problems: Iterable[Any]) -> list[str]:
    """Every text of some problems that a context may show: what tokenizers are compared on."""
    fields = ("question", "solution", "answer", "document", "demonstration", "feedback")
    return [text for problem in problems for name in fields if (text := getattr(problem, name))]


def _moved(x: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x is None else x.detach().to(device)
