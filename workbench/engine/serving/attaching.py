"""From addresses to generators: servers are asked what they are, sent the weights of now, and put in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workbench.engine.engine import Engine
from workbench.engine.heads import head_of
from workbench.engine.serving.client import PATIENCE, Replica, parsed, refuse_public
from workbench.engine.serving.fleet import Fleet
from workbench.engine.serving.generator import AdapterGenerator, BaseGenerator, SameGenerator, VllmGenerator
from workbench.engine.serving.probing import TOKENS, Probe, limit_after, prompt_of
from workbench.engine.serving.publishing import Publisher
from workbench.errors import ServerError, UsageError
from workbench.parts.refresh import FROZEN, LIVE
from workbench.records import Sampling


@dataclass(frozen=True)
class Served:
    """What a server says it is."""

    url: str
    version: str
    model: str
    limit: int
    """Tokens it takes, prompt and completion together."""

    @classmethod
    def ask(cls, replica: Replica) -> Served:
        """Its version and its base model. Raises ServerError where it does not say."""
        facts, models = replica.get("/version"), replica.get("/v1/models")
        try:
            (base,) = [m for m in models["data"] if m.get("parent") is None]
            return cls(replica.url, str(facts["version"]), str(base["id"]), int(base["max_model_len"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(
                f"{replica.url} does not say what it is ({type(error).__name__}: {error}). /version and /v1/models of "
                "a vLLM server do. Check the address."
            ) from error


def attach(
    engine: Engine,
    urls: Sequence[str],
    folder: Path,
    asked: Sequence[tuple[Sampling, int]],
    *,
    first_gap: float | None = None,
    patience: float = PATIENCE,
) -> Mapping[str, Any]:
    """Let servers write in place of the engine's own modules; returns what run.json keeps of them.

    They are sent the weights of now and probed: a first step is synchronised like every other. `asked` are the
    samplings to come, each with its longest prompt; `first_gap` is how far the servers were from this process when the
    run began. Raises UsageError for addresses and settings that cannot be, ServerError for servers that do not do as
    asked.
    """
    refuse_unfit(engine, urls)
    fleet = Fleet([Replica(url, patience=patience) for url in urls])
    found = [Served.ask(replica) for replica in fleet.replicas]
    if len({server.model for server in found}) > 1:
        raise UsageError(
            f"--server: the servers serve {', '.join(sorted({s.model for s in found}))}. Replicas are one model under "
            "one name. Start them with the same --served-model-name."
        )
    probe = partial(Probe, prompt=prompt_of(engine.tokenizer), vocabulary=len(head_of(engine.student).weight))
    kind = AdapterGenerator if engine.adapter else VllmGenerator
    own = probe(partial(engine.voice, "student"))
    limit = min(server.limit for server in found)
    if limit < len(own.prompt) + TOKENS:
        raise UsageError(f"the server takes {limit} tokens, too few to be probed. Start it with --max-model-len 1024.")
    student = kind(fleet, Publisher(folder, engine.student), own, model=found[0].model, limit=limit)
    engine.generators["student"] = student
    if engine.external is None and engine.refresh == LIVE:
        engine.generators["teacher"] = SameGenerator(student)
    elif engine.external is None and engine.refresh == FROZEN and isinstance(student, AdapterGenerator):
        engine.generators["teacher"] = BaseGenerator(student, probe(partial(engine.voice, "teacher")))
    if first_gap is not None:
        own.limits = dict.fromkeys((replica.url for replica in fleet.replicas), limit_after(first_gap))
    engine.serve(engine.weights_version)
    with engine.replicas.decoding():
        student.mode = engine.ranks.told(student.learned_mode)
    for sampling, longest in asked:
        student.check(sampling)
        student.fits(longest, sampling)
    servers = [{"url": s.url, "version": s.version, "model": s.model} for s in found]
    return {"servers": servers, "logprobs_mode": student.mode, "first_gap": student.gap}


def refuse_unfit(engine: Engine, urls: Sequence[str]) -> None:
    """Raises UsageError for addresses that are public or the same, and for a vocabulary the server cannot keep to."""
    if not urls:
        raise UsageError(
            "--engine vllm writes on servers. None was given. Add --server http://127.0.0.1:8911 (make serve)"
        )
    for url in urls:
        refuse_public(url)
    if len({parsed(url) for url in urls}) < len(urls):
        raise UsageError("--server names one address twice. Every replica has its own. Leave one out.")
    rows = len(head_of(engine.student).weight)
    if engine.vocabulary not in (None, rows):
        raise UsageError(
            f"--engine vllm: the models share {engine.vocabulary} of the student's {rows} tokens, and a server writes "
            "any. Use --engine hf with this teacher."
        )
