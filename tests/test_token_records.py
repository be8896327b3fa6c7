"""What training leaves behind token by token: the loss's own numbers, in files that survive what happens to them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_step import recipe
from tests.test_trajectory import FLOATS, HOSTILE, LOSSES, PROBLEMS, judge, of_catalogue, same_numbers
from verifiers import Verdict
from workbench import opsd
from workbench.divergence import ForwardKL, ReverseKL
from workbench.errors import InputError
from workbench.inspector import token_records, watching
from workbench.inspector.seen import COUNTED, Seen
from workbench.inspector.token_records import TokenFiles, load_run, path_of
from workbench.inspector.trajectory import Stage, measure
from workbench.inspector.watching import Recording
from workbench.parts.gates import Correct
from workbench.parts.refresh import FROZEN
from workbench.parts.schedules import Clock
from workbench.parts.terms import CrossEntropy, Distill
from workbench.recording import shown
from workbench.train.run_directory import read_jsonl
from workbench.train.step import State, compared, train_step


def watched(engine, chosen, problems=PROBLEMS, **changes):
    """(report, what watched) of one step."""
    state = State(engine, Clock(0, 4))
    state.watch = Recording("r", shown)
    engine.settings = replace(engine.settings, **changes)
    report = train_step(chosen, state, problems, judge)
    assert report is not None
    assert state.watch.failed == 0
    return report, state


def added(seen) -> float:
    return math.fsum(s.loss.sum() for s in seen)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_recorded_adds_up_to_the_steps_loss(tiny, name: str) -> None:
    """And is what a reading of the same rollouts by the same weights finds, though they have moved since."""
    chosen = replace(of_catalogue(LOSSES[name]), refresh=FROZEN)
    engine, before = tiny(), tiny()
    report, _ = watched(engine, chosen, PROBLEMS[:4])
    assert added(report.seen) == pytest.approx(report.loss, rel=1e-6, abs=1e-9)
    assert len(report.seen) == len(report.judged)
    asked = compared(chosen, [replace(j, advantage=0.0, weight=1.0) for j in report.judged], {})
    full = [s for s in report.seen if s.tops is not None]
    assert full
    for s, again in zip(report.seen, measure(Stage(before, chosen, step=1), asked), strict=True):
        assert (s.token_ids, s.rollout, s.source) == (again.token_ids, again.rollout, "recorded")
        if not s.weights.any():
            continue
        asks = ("student_logp", "student_entropy") if name == "grpo" else FLOATS
        same_numbers(s, again, 1e-5, asks if s.tops is not None else ("student_logp",))
        np.testing.assert_allclose(s.loss, again.loss, rtol=1e-5, atol=1e-9)
        if s.tops is not None:
            assert s.why == again.why


def test_watching_changes_no_weight(tiny) -> None:
    plain, other = tiny(), tiny()
    train_step(recipe(), State(plain, Clock(0, 4)), PROBLEMS, judge)
    report, state = watched(other, recipe())
    for (name, a), b in zip(plain.parameters().items(), other.parameters().values(), strict=True):
        assert torch.equal(a, b), name
    assert state.phases.seconds["record"] >= 0
    assert all(
        s.tops is None for s in report.seen if s.problem not in {j.rollout.problem.id for j in shown(report.judged, 1)}
    )


def test_micro_batches_change_no_record(tiny) -> None:
    chosen = recipe(gates=(Correct(),), terms=(Distill(ReverseKL()), CrossEntropy(coef=0.1)))
    (a, _), (b, _) = watched(tiny(), chosen), watched(tiny(), chosen, micro_tokens=1)
    assert {w for s in a.seen for w in s.why} == {COUNTED, "gated by Correct"}
    for one, other in zip(a.seen, b.seen, strict=True):
        same_numbers(one, other, 1e-9)
        assert one.why == other.why


def test_a_rollout_that_is_not_shown_has_what_the_loss_knew(tiny) -> None:
    report, _ = watched(tiny(), recipe(terms=(Distill(ForwardKL()),)))
    hidden = [s for s in report.seen if s.tops is None]
    assert hidden
    for s in hidden:
        assert np.isfinite(s.student_logp).all()
        assert np.isfinite(s.teacher_logp).all()
        np.testing.assert_array_equal(s.forward_kl, s.values[0])
        assert np.isnan(s.reverse_kl).all()
        assert "".join(s.text)


def test_training_goes_on_whatever_fails(tiny, tmp_path, monkeypatch) -> None:
    said: list[str] = []
    state = State(tiny(), Clock(0, 4))
    state.watch = Recording("r", shown, said.append)
    monkeypatch.setattr(watching, "numbers", lambda *_, **__: 1 / 0)
    for _ in range(2):
        report = train_step(recipe(), state, PROBLEMS, judge)
        assert report is not None
    assert state.watch.failed >= 2
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]
    assert added(report.seen) == pytest.approx(report.loss), "the loss's own numbers are there all the same"
    (tmp_path / "tokens").write_text("a file where the folder should be")
    files = TokenFiles(tmp_path, said.append)
    files.write(1, report.seen)
    files.write(2, report.seen)
    assert files.failed == 2
    assert len(said) == 2


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_it_was_given(tiny, tmp_path) -> None:
    report, _ = watched(tiny(dtype=torch.float32), recipe(gates=(Correct(),)))
    path = path_of(tmp_path / "tokens", 8)
    token_records.write(path, report.seen)
    assert path.name == "step-00000008.parquet"
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing half done lies about"
    for s, back in zip(report.seen, token_records.read(path), strict=True):
        equal(s, back)
    import pyarrow.parquet as pq

    assert pq.ParquetFile(path).schema_arrow.metadata[b"schema"] == b"workbench.tokens.v1"


def equal(s: Seen, back: Seen) -> None:
    for name in s.__dataclass_fields__:
        a, b = getattr(s, name), getattr(back, name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32), err_msg=name)
        elif name == "tops" and a is not None:
            for field in a.__dataclass_fields__:
                x, y = getattr(a, field), getattr(b, field)
                np.testing.assert_array_equal(x.astype(np.float32), y.astype(np.float32), err_msg=field)
        else:
            assert a == b, name


def test_hostile_text_survives(tiny, tmp_path) -> None:
    report, _ = watched(tiny(), recipe())
    bad = "\ud800 half a pair"
    s = replace(
        report.seen[0],
        problem=HOSTILE,
        question=bad,
        answer="=cmd|' /C calc'!A0",
        text=(HOSTILE, *report.seen[0].text[1:]),
        verdict=Verdict("wrong", bad, HOSTILE),
    )
    path = tmp_path / "tokens" / "step-00000001.parquet"
    token_records.write(path, [s])
    (back,) = token_records.read(path)
    assert (back.problem, back.text, back.answer, back.verdict) == (s.problem, s.text, s.answer, s.verdict)
    assert back.question == "\\ud800 half a pair"
    (row,) = load_run(tmp_path).of(problem=HOSTILE)
    assert row.status == "wrong"


def test_lists_find_rollouts_and_skip_what_is_torn(tiny, tmp_path) -> None:
    report, _ = watched(tiny(), recipe(gates=(Correct(),)))
    assert load_run(tmp_path).listed == ()
    for step in (1, 2, 3):
        token_records.write(path_of(tmp_path / "tokens", step), [replace(s, step=step) for s in report.seen])
    run = load_run(tmp_path)
    assert run.steps == (1, 2, 3)
    assert run.problems == tuple(p.id for p in PROBLEMS)
    (row,) = run.of(step=2, problem="p3", index=1)
    (expected,) = [s for s in report.seen if (s.problem, s.index) == ("p3", 1)]
    assert (row.tokens, row.kept, row.shown) == (len(expected), bool(expected.weights.any()), expected.tops is not None)
    assert row.loss == pytest.approx(expected.loss.sum(), rel=1e-6)
    equal(replace(expected, step=2), row.read())
    assert run.find(row.rollout) is not None
    assert run.find("no such") is None
    one, two, three = (path_of(tmp_path / "tokens", n) for n in (1, 2, 3))
    content = one.read_bytes()
    one.write_bytes(content[: len(content) // 2])
    two.write_bytes(content[:200] + b"\0" * 300 + content[500:])
    (tmp_path / "tokens" / "step-00000009.parquet").write_bytes(b"")
    (tmp_path / "tokens" / ".step-00000007.parquet.tmp").write_bytes(b"half")
    left = load_run(tmp_path)
    assert 3 in left.steps
    assert {p.name for p in left.torn} >= {one.name, "step-00000009.parquet"}
    with pytest.raises(InputError, match="cannot be read"):
        token_records.read(one)
    three.unlink()
    with pytest.raises(InputError):
        next(row for row in left.listed if row.step == 3).read()
    TokenFiles(tmp_path, print).drop_after(1)
    assert not two.exists()
    assert one.exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_records_and_a_resumed_run_drops_what_it_will_make_again(here, tiny_folder, capsys) -> None:
    flags = f"--model {tiny_folder} --problems sums:terms=2,maximum=9 --limit 6 --eval-problems 2 --batch 2 --name a"
    more = "--max-new-tokens 8 --eval-tokens 6 --adapter none --progress plain --save-every 2 --steps 3 --recipe opsd"
    command = [*flags.split(), *more.split()]
    assert opsd.main(command) == 0
    run = load_run(here / "runs" / "a")
    rows = read_jsonl(here / "runs/a/metrics.jsonl")
    assert run.steps == (1, 2, 3)
    for row in rows:
        listed = run.of(step=row["step"])
        assert math.fsum(one.loss for one in listed) == pytest.approx(row["loss"], rel=1e-5, abs=1e-7)
        assert len(listed) == row["rollouts"]
        assert "record" in row["seconds"]
    assert "record" in capsys.readouterr().err
    tokens = {r["problem"]: r["token_ids"] for r in read_jsonl(here / "runs/a/rollouts.jsonl") if r["step"] == 2}
    for one in run.of(step=2):
        assert list(one.read().token_ids) == tokens[one.problem]
        assert one.read().run == "a"
    # a run that is killed behind step 3 goes on behind its checkpoint of step 2
    for path in (here / "runs/a/checkpoints").iterdir():
        if path.name.endswith("3"):
            import shutil

            shutil.rmtree(path)
    stale = path_of(here / "runs/a/tokens", 7)
    stale.write_bytes(b"of a longer attempt")
    before = path_of(here / "runs/a/tokens", 3).read_bytes()
    assert opsd.main([*command, "--resume"]) == 0
    assert not stale.exists()
    assert load_run(here / "runs" / "a").steps == (1, 2, 3)
    again = token_records.read(path_of(here / "runs/a/tokens", 3))
    assert before
    assert math.fsum(s.loss.sum() for s in again) == pytest.approx(rows[-1]["loss"], rel=1e-5, abs=1e-7)
