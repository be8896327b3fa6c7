"""From text that exists to rollouts: a data set's solutions, and what another teacher wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engine.speakers import Speaker
from workbench.errors import InputError
from workbench.problems import normalised
from workbench.problems.reading import read_path
from workbench.records import Author, Request, Rollout, Sampling


@dataclass(frozen=True)
class Pen:
    """Puts texts into the student's tokens, with the end token the student's template uses."""

    student: Speaker
    weights_version: int

    def rollout(self, text: str, request: Request, author: Author, sampling: Sampling) -> Rollout:
        """The text as a completion of `author`, cut at `sampling.max_new_tokens`: then its stop is `length`."""
        tokens = [*self.student.tokenizer(text, add_special_tokens=False)["input_ids"], self.student.end]
        fits = len(tokens) <= sampling.max_new_tokens
        if not fits:
            tokens = tokens[: sampling.max_new_tokens]
            text = str(self.student.tokenizer.decode(tokens, skip_special_tokens=False))
        return Rollout(
            problem=request.problem,
            author=author,
            tokens=tuple(tokens),
            text=text,
            logprobs=None,
            stop="stop" if fits else "length",
            weights_version=self.weights_version,
            index=request.index,
        )

    def solution(self, request: Request, sampling: Sampling) -> Rollout:
        """The problem's own solution. Raises InputError where there is none."""
        text = request.problem.solution
        if text is None:
            raise InputError(
                f"problem '{request.problem.id}' has no solution to learn from. Drop it (--require solution)."
            )
        return self.rollout(text, request, "dataset", sampling)


@dataclass(frozen=True)
class Texts:
    """Texts of a teacher by problem, read from a jsonl of `{id or question, completion or completions}`."""

    source: str
    by_id: Mapping[str, tuple[str, ...]]
    by_question: Mapping[str, tuple[str, ...]]
    sha256: str

    @classmethod
    def read(cls, source: str) -> Texts:
        """Read the file. Raises InputError with the line for a row that says nothing."""
        rows = read_path(source, None, None)
        by_id: dict[str, tuple[str, ...]] = {}
        by_question: dict[str, tuple[str, ...]] = {}
        for row, place in zip(rows.rows, rows.places, strict=True):
            where = f"{rows.label} {place}"
            texts, name, question = _texts(row, where), row.get("id"), row.get("question")
            if name is None and not isinstance(question, str):
                raise InputError(f"{where}: neither id nor question. A text belongs to a problem. Add one of them.")
            target, key = (by_question, normalised(str(question))) if name is None else (by_id, str(name))
            target[key] = (*target.get(key, ()), *texts)
        digest = hashlib.sha256(Path(source).expanduser().read_bytes()).hexdigest()
        return cls(source, by_id, by_question, digest)

    def of(self, request: Request) -> str:
        """The text asked for. Raises InputError where there are fewer."""
        problem = request.problem
        found = self.by_id.get(problem.id) or self.by_question.get(normalised(problem.question)) or ()
        if request.index >= len(found):
            raise InputError(
                f"{self.source} has {len(found)} texts for problem '{problem.id}', asked for number "
                f"{request.index + 1}. Each rollout is one text. Lower --group, add texts, or leave the problem out."
            )
        return found[request.index]


def _texts(row: Mapping[str, Any], where: str) -> Sequence[str]:
    given = row.get("completions", row.get("completion"))
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where}: no completion. A row is {{id or question, completion}} or completions, a list of texts. "
            "Rename the column that holds the teacher's text."
        )
    return texts
