"""What a server is asked for one completion, and what becomes of its answer: checked, never believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ServerError
from workbench.records import Sample, Sampling, StopReason, Wanted

ROUTE = "/inference/v1/generate"
FLOOR = -9000.0
"""vLLM writes -9999 for a log-prob that is minus infinity or no number."""


def entry_id(said: object) -> int:
    """The id of a vocabulary's entry as JSON names it. Raises ValueError or TypeError for what no vocabulary holds."""
    entry = int(said)  # type: ignore[call-overload]
    if not 0 <= entry < 1 << 31:
        raise ValueError("an id that is none")
    return int(entry)


def seed_of(key: bytes) -> int:
    """`Wanted.key` as a seed that servers take: its first 63 bits."""
    return int.from_bytes(key[:8], "big") >> 1


@dataclass(frozen=True)
class Asked:
    """What every completion of a call has in common."""

    model: str
    sampling: Sampling
    ends: frozenset[int]
    vocabulary: int

    def body(self, wanted: Wanted) -> dict[str, Any]:
        """The request for one completion; greedy where the temperature is 0."""
        greedy = self.sampling.temperature == 0
        return {
            "model": self.model,
            "token_ids": list(wanted.prompt),
            "sampling_params": {
                "max_tokens": self.sampling.max_new_tokens,
                "temperature": self.sampling.temperature,
                "top_p": 1.0 if greedy else self.sampling.top_p,
                "top_k": 0 if greedy else self.sampling.top_k,
                "seed": seed_of(wanted.key),
                "logprobs": 0,
                "stop_token_ids": sorted(self.ends),
                "ignore_eos": True,  # `ends` alone ends
                "detokenize": False,
            },
        }

    def written(self, answer: object, url: str) -> Written:
        """The answer, taken apart. Raises ServerError naming the server and what is wrong."""
        try:
            return self._written(answer)
        except (_Wrong, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = str(error) if isinstance(error, _Wrong) else f"{type(error).__name__}: {error}"
            raise ServerError(
                f"{url}{ROUTE} answered what cannot be a completion: {what[:200]}. Nothing of it is used. "
                "Is it a vLLM server of a version that was tried? Look at its log."
            ) from error

    def _written(self, answer: Any) -> Written:
        (choice,) = answer["choices"]
        tokens, content = choice["token_ids"], choice["logprobs"]["content"]
        most, n = self.sampling.max_new_tokens, len(tokens)
        _demand(0 < n <= most, f"{n} tokens where 1 to {most} were asked for")
        _demand(len(content) == n, f"{n} tokens with {len(content)} log-probs")
        _demand(all(type(t) is int and 0 <= t < self.vocabulary for t in tokens), "a token outside the vocabulary")
        _demand([entry["token_id"] for entry in content] == tokens, "log-probs of other tokens than it wrote")
        logprobs = [float(entry["logprob"]) for entry in content]
        _demand(all(FLOOR < x <= 1e-3 for x in logprobs), "a log-prob that is none")  # false for NaN too
        _demand(not self.ends & set(tokens[:-1]), "tokens behind an end token")
        ended = tokens[-1] in self.ends
        _demand(ended or n == most, f"{n} of {most} tokens and no end ({choice.get('finish_reason')!r})")
        return Written(
            tuple(tokens), tuple(logprobs), "stop" if ended else "length", answer.get("model"), spans(choice)
        )


@dataclass(frozen=True)
class Written:
    """One completion as a server wrote it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: StopReason
    model: str | None
    """The name of the model that the server says wrote it."""
    labels: tuple[str, ...] | None
    """Labels of the weights that wrote it, oldest first; None: the server did not say."""

    def sample(self, versions: tuple[int, int]) -> Sample:
        """The record, by weights of these versions."""
        return Sample(self.tokens, self.logprobs, self.stop, versions)


def spans(choice: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of `weight_versions`. Raises ValueError where they do not cover the completion."""
    found: Sequence[Any] | None = choice.get("weight_versions")
    if not found:
        return None
    end = 0
    for span in found:
        _demand(span["start"] == end < span["end"], "weight versions that leave tokens out")
        end = span["end"]
    _demand(end == len(choice["token_ids"]), "weight versions of another length")
    return tuple(str(span["version"]) for span in found)


class _Wrong(ValueError):
    """What is wrong with an answer."""


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Wrong(otherwise)
