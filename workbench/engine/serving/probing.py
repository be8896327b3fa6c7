"""Is the served policy the trained one? One fixed prompt through both, and the difference of their log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.engine.generating import Voice
from workbench.engine.serving.answers import ROUTE, Asked, Written
from workbench.engine.serving.client import Replica
from workbench.engine.vocabularies import PROBES
from workbench.errors import ServerError
from workbench.records import Sampling, Wanted

LENGTH = 320
"""Ids of the probe's prompt: longer than two of the blocks in which a server keeps what it has read, so that a prefix
read under older weights is seen. A shorter prompt shows nothing."""
TOKENS = 8
"""Greedy tokens of a probe."""
CLOSE = 1e-3
"""Nats a token: servers in float32 stay far below (3e-5), those in bfloat16 far above (0.03)."""
MARGIN = 3.0
"""In other types the difference may be this multiple of what it was at first."""
FAR = 0.1
"""Nats a token at first, above which no rounding explains it."""
HOT = 2.0
"""The temperature at which log-probs before and after it differ most plainly."""

Mode = Literal["processed", "raw", "unknown"]
"""Whether a server's log-probs are after temperature, top-p and top-k, or before."""


def prompt_of(tokenizer: Any) -> tuple[int, ...]:
    """`LENGTH` ids of ordinary and odd text."""
    ids: list[int] = tokenizer("\n".join(PROBES), add_special_tokens=False)["input_ids"]
    return tuple((ids * (LENGTH // len(ids) + 1))[:LENGTH])


def limit_after(first: float) -> float:
    """What a difference may be, nats a token, where the first one was `first`."""
    return CLOSE if first <= CLOSE else MARGIN * first


@dataclass
class Probe:
    """Compares what servers say with the forward pass of a module here."""

    voice: Voice
    prompt: tuple[int, ...]
    vocabulary: int
    limits: dict[str, float] = field(default_factory=dict)
    """Address -> what its difference may be; set by the first probe."""
    gaps: dict[str, float] = field(default_factory=dict)
    """Address -> mean |log p_server - log p_here| of the last probe, nats a token."""

    def check(self, replica: Replica, model: str) -> float:
        """The difference in nats a token. Raises ServerError where it is more than rounding."""
        written = self._ask(replica, model, 0.0)
        gap = self._gap(written, self._here(written.tokens))
        self.gaps[replica.url] = gap
        limit = self.limits.get(replica.url, FAR)
        if not gap <= limit:
            raise ServerError(
                f"{replica.url} serves other weights than were sent: {gap:.3g} nats a token from our own forward pass, "
                f"at most {limit:.3g} is rounding. An old head, an old prefix cache or another model does this. "
                "Start the server from a folder that the workbench published (make serve)."
            )
        self.limits.setdefault(replica.url, limit_after(gap))
        return gap

    def mode(self, replica: Replica, model: str) -> Mode:
        """What the server's log-probs mean, shown on tokens drawn at temperature `HOT`."""
        written = self._ask(replica, model, HOT)
        logits = self._here(written.tokens)
        after, before = self._gap(written, logits / HOT), self._gap(written, logits)
        if min(after, before) > max(after, before) / 4:
            return "unknown"
        return "processed" if after < before else "raw"

    def _ask(self, replica: Replica, model: str, temperature: float) -> Written:
        asked = Asked(model, Sampling(TOKENS, temperature), frozenset(), self.vocabulary)
        answer = replica.post(ROUTE, asked.body(Wanted(self.prompt, bytes(32))))
        return asked.written(answer, replica.url)

    def _gap(self, written: Written, logits: Tensor) -> float:
        logp = logits.log_softmax(-1).gather(-1, torch.tensor(written.tokens)[:, None]).squeeze(-1)
        return float((logp - torch.tensor(written.logprobs, dtype=logp.dtype)).abs().mean())

    def _here(self, tokens: Sequence[int]) -> Tensor:
        """(n, v) float64 logits with which our own module meets these tokens."""
        with self.voice() as (module, head):
            ids = torch.tensor([[*self.prompt, *tokens[:-1]]], device=head.weight.device)
            states = module(input_ids=ids, use_cache=False).last_hidden_state[0, len(self.prompt) - 1 :]
            return head.logits(states).double().cpu()
