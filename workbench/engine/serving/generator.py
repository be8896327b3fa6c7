"""vLLM servers behind the `Generator` contract: completions out of them, weights into them, and proof that they took.

A synchronisation is one operation. Every replica: pause, reload, reset the prefix cache, name the version, resume,
probe. Whatever fails leaves that replica paused, is named, and stops the step.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from workbench.engine.generating import ignore, never
from workbench.engine.serving.answers import ROUTE, Asked, Written
from workbench.engine.serving.client import Line, Replica
from workbench.engine.serving.fleet import Fleet, alike
from workbench.engine.serving.probing import Mode, Probe
from workbench.engine.serving.publishing import Publisher
from workbench.errors import ServerError, UsageError
from workbench.records import Sample, Sampling, Wanted

_log = logging.getLogger(__name__)
KEPT = 3
"""Versions of an adapter that stay loaded: the newest, one that may still be written by, and one more."""


class VllmGenerator:
    """The student as servers write it: whole weights, reloaded from a folder that both sides see."""

    def __init__(self, fleet: Fleet, publisher: Publisher, probe: Probe, *, model: str, limit: int) -> None:
        """`model` is the name the servers serve; `limit` the tokens they take, prompt and completion together."""
        self.fleet, self.publisher, self.probe, self.model, self._limit = fleet, publisher, probe, model, limit
        self.version, self.mode = -1, "unknown"
        self.mark = ""
        """New at every synchronisation: two runs, or two lives of one, never take each other's weights for theirs."""

    @property
    def writes(self) -> str:
        """The name under which the current weights are served."""
        return self.model

    @property
    def gap(self) -> float:
        """Mean |log p_server - log p_here| of the last probe, nats a token, of the worst replica."""
        return max(self.probe.gaps.values(), default=float("nan"))

    def generate(
        self,
        wanted: Sequence[Wanted],
        sampling: Sampling,
        ends: frozenset[int],
        stopped: Callable[[], bool] = never,
        wrote: Callable[[int, Sample], None] = ignore,
    ) -> list[Sample]:
        """One sample for each wanted, in order; one that was cut off before its end is empty and `cancelled`.

        Raises ServerError for a replica that fails, UsageError for what the servers cannot do.
        """
        self.check(sampling)
        self.fits(max((len(w.prompt) for w in wanted), default=0), sampling)
        asked = Asked(self.writes, sampling, ends, self.probe.vocabulary)

        def call(replica: Replica, place: int, line: Line) -> Sample:
            written = asked.written(replica.post(ROUTE, asked.body(wanted[place]), line), replica.url)
            return written.sample(self.authors(written, replica.url))

        def finished(place: int, sample: Sample, more: bool) -> None:
            if more:
                wrote(place, sample)

        found = self.fleet.spread(alike([w.prompt for w in wanted]), call, stopped, finished)
        nothing = Sample((), (), "cancelled", (self.version, self.version))
        return [found.get(place, nothing) for place in range(len(wanted))]

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError where the servers' log-probs would not be what a `Sample` promises.

        That is: under the temperature-scaled distribution before top-p or top-k cut it. Log-probs from before the
        temperature (`raw`) are that at temperature 1, those from after everything (`processed`) where nothing cuts.
        """
        cuts = sampling.top_p < 1.0 or sampling.top_k > 0
        if sampling.temperature == 0 or not (cuts or sampling.temperature != 1.0):
            return
        if cuts and sampling.temperature != 1.0:
            raise UsageError(
                f"temperature {sampling.temperature} together with top-p {sampling.top_p} and top-k {sampling.top_k}: "
                "no vLLM server says how likely a token was after the first and before the others. Ratios to the "
                "sampler would be wrong. Use --temperature 1, or --top-p 1 --set sampling.top_k=0"
            )
        needed: Mode = "raw" if cuts else "processed"
        if self.mode != needed:
            what = "top-p or top-k" if cuts else f"temperature {sampling.temperature}"
            raise UsageError(
                f"{what} needs a server with {needed} log-probs, and its are {self.mode}. They would belong to another "
                f"distribution than the samples, without an error. Start it with --logprobs-mode {needed}_logprobs"
            )

    def authors(self, written: Written, url: str) -> tuple[int, int]:
        """Oldest and newest version that wrote a completion. Raises ServerError unless both are the current one."""
        if written.labels is None:
            raise ServerError(
                f"{url} does not say which weights wrote. Their version cannot be trusted. "
                "Use vLLM 0.32 or newer, as serving/requirements-cpu.txt pins it."
            )
        if set(written.labels) != {self.label(self.version)}:
            raise ServerError(
                f"{url} wrote with weights {', '.join(written.labels)}, where {self.label(self.version)} were sent. "
                "Somebody else sends weights too, or it started again. Use one server for one run, and resume."
            )
        return self.version, self.version

    def label(self, version: int) -> str:
        """What the servers call the weights they were sent last."""
        return f"{version}-{self.mark}"

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Publish, bring every replica to it, and probe each. Raises ServerError naming what failed and where."""
        folder, self.mark = self.publisher.publish(weights, version), secrets.token_hex(3)

        def renew(replica: Replica) -> None:
            try:
                self._renew(replica, folder, version)
                gap = self.probe.check(replica, self.served_as(version))
                _log.info("%s serves weights %s: %.3g nats a token from ours", replica.url, self.label(version), gap)
            except ServerError:
                with contextlib.suppress(ServerError):
                    replica.tell("/pause?mode=abort")
                raise

        try:
            self.fleet.everywhere(renew)
        except ServerError as error:
            raise ServerError(
                f"weights {version} did not arrive everywhere, so nobody writes. {error} "
                "Replicas that failed are paused."
            ) from error
        self.version = version
        self._retire(version)

    def follow(self, version: int, mark: str) -> None:
        """Another process of the run has synchronised: ask for what it sent."""
        self.version, self.mark = version, mark

    def served_as(self, version: int) -> str:
        """The model name under which `version` is served."""
        return self.model

    def learned_mode(self) -> Mode:
        """What the log-probs mean; where replicas do not agree nothing that depends on it is done."""
        modes = {self.probe.mode(replica, self.writes) for replica in self.fleet.replicas}
        return modes.pop() if len(modes) == 1 else "unknown"

    def close(self) -> None:
        """The servers are not ours: they go on."""

    def _renew(self, replica: Replica, folder: Path, version: int) -> None:
        replica.tell("/pause?mode=wait")  # nothing is in flight between steps, and every completion has one author
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        replica.tell("/collective_rpc", call)
        answer = replica.post("/reset_prefix_cache", {})
        if not (isinstance(answer, dict) and answer.get("success") is True):
            raise ServerError(
                f"{replica.url} kept its prefix cache ({answer}). What older weights read would be continued by newer "
                "ones. Somebody else has requests there: use one server for one run."
            )
        replica.tell("/update_weight_version", {"new_version": self.label(version)})
        replica.tell("/resume")

    def _retire(self, version: int) -> None:
        self.publisher.retire([version])

    def fits(self, prompt: int, sampling: Sampling) -> None:
        """Raises UsageError where a prompt of so many tokens and its completion are more than a server takes."""
        longest = prompt + sampling.max_new_tokens
        if longest > self._limit:
            raise UsageError(
                f"a prompt and its completion may take {longest} tokens, the server {self._limit}. It would cut "
                f"completions without a word. Start it with --max-model-len {longest}, or lower --max-new-tokens."
            )


class AdapterGenerator(VllmGenerator):
    """The student as an adapter over a served base: a new name for every version, and the base stays what it is."""

    def __init__(self, fleet: Fleet, publisher: Publisher, probe: Probe, *, model: str, limit: int) -> None:
        """`model` is the base's name."""
        super().__init__(fleet, publisher, probe, model=model, limit=limit)
        self._loaded = deque[tuple[int, str]]()

    @property
    def writes(self) -> str:
        """The adapter of the current version."""
        return self.served_as(self.version)

    def served_as(self, version: int) -> str:
        """`policy-<version>`; a name is never used twice, for what was read under it stays in the server's cache."""
        return f"policy-{self.label(version)}"

    def authors(self, written: Written, url: str) -> tuple[int, int]:
        """The adapter's version. Raises ServerError where another model answered."""
        if written.model != self.writes:
            raise ServerError(
                f"{url} answered with model {written.model!r} where {self.writes!r} was asked. Its completions are "
                "another policy's. Use one server for one run."
            )
        return self.version, self.version

    def _renew(self, replica: Replica, folder: Path, version: int) -> None:
        replica.tell("/v1/load_lora_adapter", {"lora_name": self.served_as(version), "lora_path": str(folder)})

    def _retire(self, version: int) -> None:
        """Unload and remove what nothing is written by any more; some servers read an adapter's files at every step."""
        self._loaded.append((version, self.writes))
        while len(self._loaded) > KEPT:
            old = {"lora_name": self._loaded.popleft()[1]}
            self.fleet.everywhere(partial(Replica.tell, path="/v1/unload_lora_adapter", body=old))
        self.publisher.retire(version for version, _ in self._loaded)


class BaseGenerator(VllmGenerator):
    """The base under a served adapter: the frozen teacher writes on the student's servers."""

    def __init__(self, student: AdapterGenerator, probe: Probe) -> None:
        """`probe` compares with the module that teaches."""
        super().__init__(student.fleet, student.publisher, probe, model=student.model, limit=student._limit)
        self._student = student

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """It stays what it is; the first time it is shown to be what teaches here. Raises ServerError."""
        if not self.probe.gaps:
            self.fleet.everywhere(lambda replica: void(self.probe.check(replica, self.model)))
        self.version = version

    def check(self, sampling: Sampling) -> None:
        """As the student's."""
        self.mode = self._student.mode
        super().check(sampling)

    def authors(self, written: Written, url: str) -> tuple[int, int]:
        """The base never moves; `version` says when it was asked. Raises ServerError where an adapter answered."""
        if written.model not in (None, self.model):
            raise ServerError(
                f"{url} answered with model {written.model!r}, not the base {self.model!r}. Start it anew."
            )
        return self.version, self.version


class SameGenerator:
    """A live teacher: the student's own weights, whose servers need telling only once."""

    def __init__(self, student: VllmGenerator) -> None:
        """`student` is synchronised by whoever owns it."""
        self._student = student
        self.generate = student.generate

    @property
    def version(self) -> int:
        """The student's."""
        return self._student.version

    @version.setter
    def version(self, _: int) -> None:
        """Moves with the student's alone."""

    @property
    def gap(self) -> float:
        """The student's."""
        return self._student.gap

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Done by the student's own."""

    @property
    def mark(self) -> str:
        """The student's."""
        return self._student.mark

    @mark.setter
    def mark(self, _: str) -> None:
        """Moves with the student's alone."""

    def follow(self, version: int, mark: str) -> None:
        """As the student's own does."""

    def close(self) -> None:
        """Holds nothing."""


def void(_: object) -> None:
    """Leave a result unused."""
