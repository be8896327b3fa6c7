"""Whole runs whose student is written by servers: the same as in process, one step off, and when a replica dies."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.serving_double import Double
from tests.test_generators import wanted
from tests.test_job import command, status  # noqa: F401
from workbench.engine.engine import Engine
from workbench.engine.serving.ahead import AheadGenerator
from workbench.engine.serving.probing import Probe
from workbench.errors import TrainingError
from workbench.records import Sample, Sampling
from workbench.train.agreement import Agreement
from workbench.train.run_directory import read_jsonl

QUICK = [
    "--eval-problems",
    "0",
    "--max-new-tokens",
    "6",
    "--temperature",
    "1",
    "--top-p",
    "1",
    "--set",
    "sampling.top_k=0",
]


def rows(name: str, file: str = "metrics") -> list[dict]:
    return read_jsonl(Path("runs", name, f"{file}.jsonl"))


def test_a_run_on_two_replicas_records_what_it_did(command, tiny_folder, capsys) -> None:  # noqa: F811
    with Double(tiny_folder, dtype=torch.float32) as one, Double(tiny_folder, dtype=torch.float32) as other:
        flags = ["--engine", "vllm", "--server", f"{one.url},{other.url}", "--name", "a", "--steps", "2", *QUICK]
        assert command(*flags) == 0
    facts = json.loads(Path("runs/a/run.json").read_text())
    assert [s["version"] for s in facts["servers"]] == ["0.32.0", "0.32.0"]
    for row in rows("a"):
        assert row["sampler_gap"] < 1e-4
        assert row["sampler_effective_share"] == pytest.approx(1, abs=1e-6)
        assert row["sampler_far_share"] == row["staleness"] == 0
        assert row["probe_gap"] < 1e-4
    assert "effective 1.000" in capsys.readouterr().err
    assert [r["weights_version"] for r in rows("a", "rollouts")] == [0] * 3 + [1] * 3


def test_a_replica_that_dies_stops_the_run_with_the_reason_and_it_goes_on(command, tiny_folder, capsys) -> None:  # noqa: F811
    flags = ["--engine", "vllm", "--name", "a", "--save-every", "50", *QUICK]
    with Double(tiny_folder) as one, Double(tiny_folder) as other:
        addresses = ["--server", f"{one.url},{other.url}"]
        assert command(*flags, "--steps", "4", "--name", "whole", *addresses) == 0
    with Double(tiny_folder) as good, Double(tiny_folder) as bad:
        bad.die_after = 7  # probes and some rollouts: midway in a later step
        assert command(*flags, "--steps", "4", "--server", f"{good.url},{bad.url}") == 1
        said = capsys.readouterr().err
        assert bad.url in said
        assert "cannot be reached" in said
        done = len(rows("a"))
        assert 0 < done < 4
        assert f"last good checkpoint: step {done}" in said, "what was learnt before it died is saved"
        assert status("a")["phase"] == "failed"
        assert command(*flags, "--steps", "4", "--server", good.url, "--resume") == 0
    assert [row["step"] for row in rows("a")] == [1, 2, 3, 4]
    assert [r["loss"] for r in rows("a")] == pytest.approx([r["loss"] for r in rows("whole")], rel=1e-5)


def test_flags_of_servers_are_refused_where_nobody_serves(command, capsys) -> None:  # noqa: F811
    for flags, words in (
        (["--server", "http://127.0.0.1:1"], "Add --engine vllm"),
        (["--ahead", "1"], "cannot write while it is trained"),
        (["--ahead", "2"], "one step old, no more"),
        (["--engine", "vllm"], "--server http://127.0.0.1:8911"),
        (["--engine", "vllm", "--server", "http://127.0.0.1:9"], "cannot be reached"),
        (["--engine", "vllm", "--server", "http://8.8.8.8:9"], "public address"),
    ):
        assert command(*flags, "--dry-run") != 0
        assert words in capsys.readouterr().err


def test_an_address_is_refused_before_anything_of_it_is_written(command, capsys) -> None:  # noqa: F811
    for url in ("http://me:secret@127.0.0.1:9", "http://8.8.8.8:9", "ftp://127.0.0.1:9"):
        assert command("--engine", "vllm", "--server", url, "--name", "a") == 2
    assert not Path("runs").exists()
    assert "secret" not in capsys.readouterr().err


def test_a_step_that_another_policy_wrote_is_not_learnt_and_what_was_done_is_saved(
    command,  # noqa: F811
    tiny_folder,
    monkeypatch,
    capsys,
) -> None:
    plain, steps = Agreement.of, []

    def of(recipe, signals):
        steps.append(plain(recipe, signals))
        return replace(steps[-1], distance=9.0) if len(steps) == 5 else steps[-1]  # asked twice a step

    monkeypatch.setattr(Agreement, "of", of)
    with Double(tiny_folder, dtype=torch.float32) as double:
        flags = ["--engine", "vllm", "--server", double.url, "--save-every", "50", "--steps", "4", *QUICK]
        assert command(*flags, "--name", "a") == 1
        said = capsys.readouterr().err
        assert "not who learns: 9.000 nats" in said
        assert "last good checkpoint: step 2" in said
        assert len(rows("a")) == 2
        monkeypatch.setattr(Agreement, "of", plain)
        assert command(*flags, "--name", "a", "--resume") == 0
        assert command(*flags, "--name", "whole") == 0
    assert [r["loss"] for r in rows("a")] == [r["loss"] for r in rows("whole")]


# One step off


def test_one_step_off_is_the_synchronous_run_with_older_weights(command, tiny_folder, monkeypatch, capsys) -> None:  # noqa: F811
    """Rollouts of step k come from the weights after step k - 2, everything else from those of now."""
    flags = ["--engine", "vllm", "--steps", "4", "--lr", "1e-4", *QUICK]
    with Double(tiny_folder) as double:
        assert command(*flags, "--name", "ahead", "--ahead", "1", "--server", double.url) == 0
        assert command(*flags, "--name", "sync", "--server", double.url) == 0

        plain = Engine.update

        def late(engine, optimizer):
            """After each update the servers get the weights from before it."""
            kept = {n: p.detach().clone() for n, p in engine.parameters().items()}
            norm = plain(engine, optimizer)
            with monkeypatch.context() as patch:
                patch.setattr(Probe, "check", lambda *_: 0.0)  # they are older than ours on purpose
                engine.generators["student"].sync(kept.items(), engine.weights_version - 1)
            engine._moved = False
            return norm

        monkeypatch.setattr(Engine, "update", late)
        assert command(*flags, "--name", "simulated", "--server", double.url) == 0
    assert [r["loss"] for r in rows("ahead")] == [r["loss"] for r in rows("simulated")]
    assert (
        status("ahead")["weights_sha256"] == status("simulated")["weights_sha256"] != status("sync")["weights_sha256"]
    )
    drifted = ["--lr", "1e-3", "--name", "drifted", "--ahead", "1"]
    with Double(tiny_folder) as double:
        assert command(*flags, *drifted, "--server", double.url) == 1
    assert "whoever writes is not who learns" in capsys.readouterr().err
    assert [r["staleness"] for r in rows("ahead")] == [0, 1, 1, 1]
    assert [r["weights_version"] for r in rows("ahead", "rollouts")] == [0] * 6 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_run_one_step_off_resumes_with_the_rollouts_that_were_under_way(
    command,  # noqa: F811
    tiny_folder,
    monkeypatch,
    how,
) -> None:
    """Killed behind a checkpoint, or stopped in the middle of a step: tokens, losses and weights of the whole run."""
    flags = ["--engine", "vllm", "--steps", "4", "--lr", "1e-4", "--ahead", "1", "--micro-tokens", "1", *QUICK]
    with Double(tiny_folder) as double:
        assert command(*flags, "--name", "whole", "--server", double.url) == 0
    plain, seen = Engine.teach, []

    def teach(engine, *asked):
        seen.append(engine.weights_version)
        if seen[-1] == 2 and how == "killed":
            raise SystemExit(9)
        if seen[-1] == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(engine, *asked)

    every = ["--save-every", "1" if how == "killed" else "50"]
    with Double(tiny_folder) as double, monkeypatch.context() as patch:
        patch.setattr(Engine, "teach", teach)
        ended = command(*flags, *every, "--name", "a", "--server", double.url)
    assert ended == (9 if how == "killed" else 130)
    assert [r["step"] for r in rows("a")] == [1, 2]
    with Double(tiny_folder) as double:
        assert command(*flags, *every, "--name", "a", "--server", double.url, "--resume") == 0
    for field in ("loss", "staleness", "tokens_mean"):
        assert [r[field] for r in rows("a")] == [r[field] for r in rows("whole")], field
    assert [r["staleness"] for r in rows("a")] == [0, 1, 1, 1]
    tokens = [[(r["token_ids"], r["weights_version"]) for r in rows(name, "rollouts")] for name in ("a", "whole")]
    assert tokens[0] == tokens[1]
    assert status("a")["weights_sha256"] == status("whole")["weights_sha256"]


class Recorded:
    """A generator that notes what it is asked, and with which weights."""

    version, gap = 0, 0.0

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def generate(self, wanted, sampling, ends, stopped=lambda: False, wrote=lambda *_: None):
        self.asked.append((len(wanted), self.version))
        return [Sample((1,), (-1.0,), "length", (self.version, self.version)) for _ in wanted]

    def sync(self, weights, version) -> None:
        self.version = version

    def close(self) -> None:
        """Holds nothing."""


def test_what_was_begun_is_taken_once_and_other_settings_are_written_anew() -> None:
    inner = Recorded()
    generator, sampling, ends = AheadGenerator(inner), Sampling(4), frozenset({3})
    generator.begin(wanted(), sampling, ends, 1)
    generator.sync([], 1)
    assert {s.versions for s in generator.generate(wanted(), sampling, ends)} == {(0, 0)}
    assert {s.versions for s in generator.generate(wanted(), sampling, ends)} == {(1, 1)}, "taken once"
    generator.begin(wanted(), sampling, ends, 1)
    assert {s.versions for s in generator.generate(wanted(), Sampling(5), ends)} == {(1, 1)}
    generator.sync([], 2)
    more = [*wanted(), *wanted(seed=9)]
    assert [s.versions[0] for s in generator.generate(more, sampling, ends)] == [1] * 4 + [2] * 4
    generator.begin(wanted(), sampling, ends, 1)
    generator.sync([], 3)
    generator.sync([], 4)
    with pytest.raises(TrainingError, match="More than 1 step"):
        generator.generate(wanted(), sampling, ends)
    generator.close()


def test_what_was_begun_is_remembered_whole_and_without_what_failed_or_was_cut_off() -> None:
    inner, sampling, ends = Recorded(), Sampling(4), frozenset({3})
    generator = AheadGenerator(inner)
    generator.begin(wanted(), sampling, ends, 5)
    generator.begin(wanted(seed=9), sampling, ends, 6)
    kept = json.loads(json.dumps(generator.remembered(5)))
    expected = generator.generate(wanted(), sampling, ends)
    assert json.loads(json.dumps(generator.remembered(5))) == kept, "its step is not done yet"
    generator.forget()
    assert generator.remembered(5) == []
    other = AheadGenerator(Recorded())
    other.sync([], 1)
    other.recall(5, kept)
    assert other.generate(wanted(), sampling, ends) == expected
    assert other.inner.asked == []
    kept[0]["samples"][0]["stop"] = "cancelled"
    other.recall(5, kept)
    kept = other.remembered(5)[-1:]
    assert len(kept[0]["samples"]) == len(wanted()) - 1
    third = AheadGenerator(Recorded())
    third.sync([], 1)
    third.recall(5, kept)
    assert [s.versions[0] for s in third.generate(wanted(), sampling, ends)] == [1, 0, 0, 0]
    inner.generate = lambda *_: 1 / 0
    generator.begin(wanted(), sampling, ends, 7)
    assert generator.remembered(7) == []
    for each in (generator, other, third):
        each.close()


# Agreement


def test_agreement_is_what_its_formulas_say() -> None:
    calm = Agreement(0.0, 0.03, 0.99, 0.01)
    calm.refuse()
    Agreement().refuse()
    for bad in (Agreement(0, 0.31, 0.9, 0.1), Agreement(0, 0.1, 0.4, 0.1), Agreement(0, 0.1, 0.9, 0.6)):
        with pytest.raises(TrainingError, match="whoever writes is not who learns"):
            bad.refuse()
