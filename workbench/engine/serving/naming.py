"""Entries that we name to a server: it says what they weigh at each token of a text.

vLLM does since 0.32, on its V2 model runner: `prompt_logprob_token_ids` has a list of ids for each token that is
scored, and `prompt_token_id_logprobs` comes back as a matrix (a base64 `.npy`, float32, nats at temperature 1). The
matrix does not say which ids it is of, and a server that knows nothing of the field answers without it. So each list
ends with the token that was written, the ordinary log-probs are asked for in the same request, and both have to say the
same of every entry that is in both.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.engine.serving.answers import FLOOR, ROUTE, entry_id
from workbench.engine.serving.client import Line, Replica
from workbench.errors import ServerError

AGREE = (0.25, 0.02)
"""Nats, and as a share of the log-prob: how far both may be apart. 16-bit logits round by an eighth and more."""

Entries = tuple[dict[int, float], float]
"""Entry -> log-prob, and the written token's."""


@dataclass(frozen=True)
class Question:
    """What entries weigh at each token of a text behind a prompt."""

    prompt: Sequence[int]
    text: Sequence[int]
    named: Sequence[Sequence[int]]
    """K ids for each token of the text."""
    beside: int = 0
    """The server's own likeliest that are told too."""

    def body(self, model: str) -> dict[str, Any]:
        """The request."""
        return {
            "model": model,
            "token_ids": [*self.prompt, *self.text],
            "sampling_params": {
                "max_tokens": 1,
                "detokenize": False,
                "prompt_logprobs": max(self.beside, len(self.named[0])),  # where both speak of one, they are compared
                "prompt_logprob_token_ids": self.rows,
                "prompt_logprob_start": len(self.prompt) - 1,
            },
        }

    @property
    def rows(self) -> list[list[int]]:
        """The ids of each row, the written token's last."""
        return [[*row, token] for row, token in zip(self.named, self.text, strict=True)]

    def read(self, answer: Any) -> list[Entries]:
        """A row a token. Raises ValueError, or what hostile JSON raises, for an answer that cannot be that."""
        rows, own = self.rows, answer["prompt_logprobs"]
        matrix = _matrix(answer.get("prompt_token_id_logprobs"), (len(rows), len(rows[0])))
        if len(own) != len(self.prompt) + len(self.text):
            raise ValueError(f"{len(own)} positions for {len(self.prompt) + len(self.text)} tokens")
        told = zip(self.text, rows, matrix, own[len(self.prompt) :], strict=True)
        return [_row(*of, self.beside) for of in told]


def said_of(replica: Replica, model: str, question: Question, line: Line | None = None) -> list[Entries]:
    """What the server says. Raises ServerError for an answer that cannot be that."""
    answer = replica.post(ROUTE, question.body(model), line)
    try:
        return question.read(answer)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ServerError(
            f"{replica.url}{ROUTE} answered what are no log-probs of the tokens that were named ({error}). Nothing of "
            "it is used. Does its version know prompt_logprob_token_ids, and is --logprobs-mode one of log-probs?"
        ) from error


def names(replica: Replica, model: str, width: int) -> tuple[int | None, str]:
    """How many entries a token can be named to the server, or None and why.

    It is asked once, for as many as it gives of its own: what --max-logprobs allows, the written one among them.
    """
    try:
        said_of(replica, model, Question([1, 2], [3], [[i for i in range(width) if i != 3][: width - 1]], width))
    except ServerError as error:
        return None, str(error)
    return width - 1, ""


def _matrix(said: object, shape: tuple[int, int]) -> list[list[float]]:
    """The numbers of a base64 `.npy`. Raises ValueError for others than so many float32.

    Its header is compared and not read: a reader would believe what it says about sizes and types.
    """
    if not isinstance(said, str):
        raise ValueError("prompt_token_id_logprobs is missing: the field was ignored")
    raw, size = base64.b64decode(said, validate=True), 4 * shape[0] * shape[1]
    header, numbers = raw[:-size], raw[-size:]
    facts = (b"'descr': '<f4'", b"'fortran_order': False", f"'shape': {shape}".encode())
    if not (header.startswith(b"\x93NUMPY") and header.endswith(b"\n") and all(fact in header for fact in facts)):
        raise ValueError(f"no float32 numbers for the {shape[0]} times {shape[1]} that were named: {header[:120]!r}")
    found: list[list[float]] = np.frombuffer(numbers, dtype="<f4").reshape(shape).tolist()
    return found


def _row(token: int, asked: Sequence[int], given: Sequence[float], own: dict[str, Any], beside: int) -> Entries:
    """One token's entries. Raises ValueError where they are no log-probs, or not those of the ids that were asked."""
    ordinary = {entry_id(entry): float(value["logprob"]) for entry, value in own.items()}
    if not all(FLOOR < value <= 1e-3 for value in (*given, *ordinary.values())):  # false for NaN too
        raise ValueError("a log-prob that is none")
    found = dict(zip(asked, given, strict=True))
    for entry in ordinary.keys() & found.keys() | {token}:
        apart = abs(ordinary[entry] - found[entry])
        if not apart <= AGREE[0] + AGREE[1] * abs(ordinary[entry]):
            raise ValueError(f"entry {entry} is {apart:.3g} nats from what it is without being named")
    entries = {entry: min(value, 0.0) for entry, value in {**ordinary, **found}.items()}
    likeliest = sorted(ordinary, key=lambda entry: -ordinary[entry])[:beside]
    return {entry: entries[entry] for entry in (*asked[:-1], *likeliest)}, entries[token]
