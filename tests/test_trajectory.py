"""What both roles see of a completion is what the loss sees, for every kind of teacher, live or afterwards."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TEMPLATE, build_tiny
from tests.test_step import PROBLEMS as PLAIN
from tests.test_step import recipe, verify
from workbench import cache_teacher
from workbench.divergence import EntryClipped, ForwardKL, ReverseKL, TopK
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.roles import Cast
from workbench.engine.teachers import Beside, Place, invite, run_texts
from workbench.errors import InputError
from workbench.inspector.diagnostics.record import TokenRecord
from workbench.inspector.live import branch, live
from workbench.inspector.measuring import KNOWN
from workbench.inspector.pieces import Writing, decoded, pieces
from workbench.inspector.seen import COUNTED, Seen
from workbench.inspector.trajectory import Stage, measure
from workbench.overrides import choose
from workbench.parts.contexts import question
from workbench.parts.gates import Correct
from workbench.parts.refresh import EXTERNAL, FROZEN, LIVE
from workbench.parts.schedules import Clock
from workbench.parts.terms import CrossEntropy, Distill, by_teacher
from workbench.parts.weights import EntropyAbove, SkipFirst
from workbench.parts.writers import ByTeacher, Desk, FromDataset, OnPolicy, TokenMixture
from workbench.planning import plan
from workbench.recipe import Optimizer, Recipe
from workbench.records import Judged, Refresh, Request, Sampling
from workbench.train.step import State, compared, train_step

PROBLEMS = [replace(p, document=f"About {p.id}.", feedback="No.") for p in PLAIN]
END = "<|endoftext|>"
SUMS = "sums:terms=2,maximum=9"
FLAGS = f"--problems {SUMS} --limit 4 --eval-problems 0 --max-new-tokens 9 --temperature 1.3".split()
FLOATS = ("student_logp", "teacher_logp", "forward_kl", "reverse_kl", "jsd", "student_entropy", "teacher_entropy")
LOSSES = {
    "opsd": ("opsd", "terms.0.divergence.ceiling=0.02"),
    "opsdc": ("opsdc",),
    "gates": ("gates", "gates.0.votes=1", "rollouts.writers.0.per_problem=2", "rollouts.writers.1.per_problem=2"),
    "grpo": ("grpo",),
    "with plans": ("lsm", "plans.0=HighestEntropy(0.4)"),
}
TAUGHT = {"gkd": ("gkd",), "rkl_kd": ("rkl_kd",), "kdrl": ("kdrl",), "adakd": ("adakd", "plans.0.share=0.5")}


def of_catalogue(case: tuple[str, ...]) -> Recipe:
    name, *changes = case
    found = choose(name, changes).at(Clock(2, 4))
    sampling = replace(found.sampling, max_new_tokens=9, temperature=1.3, top_k=0, top_p=1.0)
    return replace(found, sampling=sampling, scoring_temperature=None, adapter=None, optimizer=Optimizer(lr=1e-3))


def drawn(engine: Engine, chosen: Recipe, problems=PROBLEMS, seed=(0, 0)) -> list[list[Judged]]:
    desk = Desk(engine, chosen.student, chosen.teacher, chosen.sampling, seed, lambda: False)
    return compared(chosen, [Judged(r, judge(r)) for r in chosen.rollouts.draw(desk, problems)], {})


def judge(rollout):
    """Some right and some wrong, so that a group has advantages."""
    right = (len(rollout.problem.id) + sum(rollout.tokens)) % 2
    return replace(verify(rollout), status="correct" if right else "wrong", extracted=str(right))


def one_loss(engine: Engine, chosen: Recipe, problems=PROBLEMS) -> list[Seen]:
    """Measured first, then trained on: the sums agree, since weights move only behind the step's loss."""
    seen = measure(Stage(engine, chosen), drawn(engine, chosen, problems))
    report = train_step(chosen, State(engine, Clock(0, 4)), problems, judge)
    assert report is not None
    assert report.kept
    assert math.fsum(np.nansum(s.loss) for s in seen) == pytest.approx(report.loss, rel=1e-6, abs=1e-7)
    assert len(seen) == len(report.judged), "every rollout, kept or not"
    return seen


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_tokens_add_up_to_the_steps_loss(tiny, name: str) -> None:
    chosen = of_catalogue(LOSSES[name])
    engine = tiny(refresh=chosen.refresh if not chosen.refresh.external else FROZEN)
    if chosen.refresh.external:
        chosen = replace(chosen, refresh=FROZEN)
    seen = one_loss(engine, chosen, PROBLEMS[:4])
    assert any(abs(s.loss).sum() > 0 for s in seen)
    assert {s.author for s in seen} == chosen.rollouts.authors


@pytest.mark.parametrize("adapter", [None, "lora:r=4,alpha=8"])
@pytest.mark.parametrize("refresh", [LIVE, FROZEN, Refresh(1, 1.0), Refresh(1, 0.3)], ids=str)
def test_numbers_are_those_of_both_models_own_logits(tiny, adapter, refresh) -> None:
    """Against the definitions in float64, after a step that moved student and teacher apart."""
    engine = tiny(adapter=adapter, refresh=refresh)
    chosen = recipe(refresh=refresh, terms=(Distill(ForwardKL()),))
    assert train_step(chosen, State(engine, Clock(0, 4)), PROBLEMS[:3], verify) is not None
    for s in measure(Stage(engine, chosen), drawn(engine, chosen, PROBLEMS[:2])):
        logps = []
        for role, prompt in (("student", s.student_prompt), ("teacher", s.teacher_prompt)):
            with engine.running(role) as model, torch.no_grad():
                ids = torch.tensor([[*prompt, *s.token_ids]])
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
                logps.append((logits / chosen.temperature).log_softmax(-1))
        student, teacher = logps
        rows = torch.arange(len(s))
        near(s.student_logp, student[rows, list(s.token_ids)])
        near(s.teacher_logp, teacher[rows, list(s.token_ids)])
        near(s.forward_kl, (teacher.exp() * (teacher - student)).sum(-1))
        near(s.reverse_kl, (student.exp() * (student - teacher)).sum(-1))
        middle = ((student.exp() + teacher.exp()) / 2).log()
        near(s.jsd, sum(p.exp() * (p - middle) / 2 for p in logps).sum(-1))
        near(s.student_entropy, -(student.exp() * student).sum(-1))
        near(s.values[0], s.forward_kl)
        assert s.student_rank.tolist() == [(student[t] > student[t, y]).sum() for t, y in enumerate(s.token_ids)]
        for t in range(len(s)):
            for a in s.alternatives(t):
                assert a.student_logp == pytest.approx(float(student[t, a.token]))
                assert a.teacher_logp == pytest.approx(float(teacher[t, a.token]))
            outside = [i for i in range(student.shape[-1]) if i not in s.tops.teacher_ids[t]]
            assert s.tops.teacher_tail[t] == pytest.approx(float(teacher[t, outside].logsumexp(0)))
            listed = {a.token for a in s.alternatives(t)}
            rest = [i for i in range(student.shape[-1]) if i not in listed]
            assert s.rest(t) == pytest.approx([float(p[t, rest].logsumexp(0)) for p in logps])


def near(found, expected) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-6, atol=1e-8)


def test_micro_batches_and_chunks_change_nothing(tiny, monkeypatch) -> None:
    from workbench.inspector import measuring

    engine, chosen = tiny(), recipe(token_weight=EntropyAbove(4.0), gates=(Correct(),))
    groups = [[replace(j, verdict=judge(j.rollout)) for j in g] for g in drawn(engine, chosen)]
    expected = measure(Stage(engine, chosen), groups)
    engine.settings = replace(engine.settings, micro_tokens=1)
    monkeypatch.setattr(measuring, "TILE", 8)
    for a, b in zip(measure(Stage(engine, chosen), groups), expected, strict=True):
        same_numbers(a, b, 1e-9)
        assert (a.why, a.text, a.rollout) == (b.why, b.text, b.rollout)


def same_numbers(a: Seen, b: Seen, atol: float, names=(*FLOATS, "values")) -> None:
    for name in names:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=atol, err_msg=name)
    assert a.token_ids == b.token_ids


def test_equal_contexts_on_equal_weights_differ_at_no_token(tiny) -> None:
    engine, chosen = tiny(refresh=LIVE), recipe(teacher=question, refresh=LIVE)
    for s in measure(Stage(engine, chosen), drawn(engine, chosen)):
        for name, _ in KNOWN:
            np.testing.assert_allclose(getattr(s, name), 0.0, atol=1e-12)
        np.testing.assert_allclose(s.difference, 0.0, atol=1e-12)


# -- why -----------------------------------------------------------------------------------------------------------


def reasons(engine: Engine, status: str = "correct", **changes) -> list[Seen]:
    chosen = recipe(**changes)
    groups = drawn(engine, chosen, PROBLEMS[:2])
    groups = [[replace(j, verdict=replace(j.verdict, status=status)) for j in g] for g in groups]
    return measure(Stage(engine, chosen), groups)


def test_every_token_says_why(tiny) -> None:
    engine = tiny()
    assert all(set(s.why) == {COUNTED} and (s.weight == 1).all() for s in reasons(engine))
    for s in reasons(engine, status="wrong", gates=(Correct(),)):
        assert set(s.why) == {"gated by Correct"}
        assert not s.weight.any()
        assert not s.loss.any()
        assert (s.values[0] > 0).all(), "what the term would have said"
    for s in reasons(engine, token_weight=SkipFirst(4)):
        assert s.why == ("skipped: first 4",) * 4 + (COUNTED,) * (len(s) - 4)
        assert s.weight.tolist() == [0.0] * 4 + [1.0] * (len(s) - 4)
    middle = float(np.median(np.concatenate([s.teacher_entropy for s in reasons(engine)])))
    for s in reasons(engine, token_weight=EntropyAbove(middle)):
        assert [w == COUNTED for w in s.why] == (s.teacher_entropy > middle).tolist()
        assert set(s.why) <= {COUNTED, "left out by EntropyAbove"}
    for s in reasons(engine, terms=(Distill(ForwardKL(), token_clip=0.5),)):
        assert [w == "clipped" for w in s.why] == (s.forward_kl > 0.5).tolist()
    clipped = reasons(engine, terms=(Distill(EntryClipped(ForwardKL(), ceiling=0.05)),))
    assert {w for s in clipped for w in s.why} >= {"clipped"}
    for s in clipped:
        bound = s.forward_kl - s.values[0] > 1e-4
        assert all(w.startswith("clipped") for w, b in zip(s.why, bound, strict=True) if b)
        assert all(b or w != "clipped" for w, b in zip(s.why, s.forward_kl - s.values[0] > 1e-6, strict=True))
    for s in reasons(engine, terms=(Distill(ForwardKL()), CrossEntropy(where=by_teacher)), rollouts=ByTeacher(1)):
        assert set(s.why) == {COUNTED}
        assert s.author == "teacher"
    from workbench.parts.terms import by_student
    from workbench.parts.writers import Together

    both = reasons(
        engine, terms=(Distill(ForwardKL(), where=by_student),), rollouts=Together((OnPolicy(1), ByTeacher(1)))
    )
    assert {s.author: set(s.why) for s in both} == {
        "student": {COUNTED},
        "teacher": {"not learnt: no term counts what the teacher wrote"},
    }


def test_an_empty_completion_is_a_record_of_nothing(tiny) -> None:
    engine, chosen = tiny(), recipe()
    judged = drawn(engine, chosen, PROBLEMS[:1])[0][0]
    empty = replace(judged, rollout=replace(judged.rollout, tokens=(), text="", logprobs=()))
    seen = measure(Stage(engine, chosen), [[empty, judged]])
    assert [len(s) for s in seen] == [0, len(judged.rollout.tokens)]
    assert seen[0].completion == ""
    assert seen[0].loss.shape == (0,)


# -- teachers that are not the student -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    two = {"specials": (END,)}
    build_tiny(folder / "student", **two)
    ends = TEMPLATE.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}" + END)
    build_tiny(folder / "teacher", seed=3, layers=1, hidden_size=96, end=END, template=ends, **two)
    build_tiny(folder / "plain", seed=3, layers=1, hidden_size=96, vocab_size=300, **two)
    who = ["--model", str(folder / "student"), "--teacher", str(folder / "plain"), *FLAGS]
    who += ["--recipe", "word_kd", "--set", "student=question", "--set", "teacher=question"]
    assert cache_teacher.main([*who, "--hidden", "--out", str(folder / "hidden")]) == 0
    assert cache_teacher.main([*who, "--top-k", "6", "--out", str(folder / "top-k")]) == 0
    return folder


@pytest.fixture(scope="module")
def problems():
    from workbench.cli import parse

    return plan(parse(["--model", "x", *FLAGS, "--recipe", "word_kd"])).train


def beside(root: Path, kind: str, problems) -> Engine:
    loaded, cpu = load(str(root / "student"), dtype=torch.float32), torch.device("cpu")
    other = invite(str(root / kind))
    other.join(Beside(loaded, run_texts(problems), Place(cpu, cpu, dtype="float32")))
    cast = Cast(other, needs_reference=kind == "plain")
    return Engine(loaded, adapter=None, refresh=EXTERNAL, settings=EngineSettings(), cast=cast)


@pytest.mark.parametrize("name", TAUGHT)
def test_losses_add_up_where_another_model_teaches(root, problems, name: str) -> None:
    engine = beside(root, "plain", problems)
    chosen = replace(of_catalogue(TAUGHT[name]), student=question, teacher=question)
    for s in one_loss(engine, chosen, problems):
        assert np.isfinite(s.forward_kl).all()


@pytest.mark.parametrize("kind", ["hidden", "top-k"])
def test_a_teacher_that_was_asked_once(root, problems, kind: str) -> None:
    """Hidden states say everything; of six entries everything else is not known, and said to be so."""
    chosen = replace(of_catalogue(("word_kd",)), student=question, teacher=question, terms=(Distill(ForwardKL()),))
    found = {k: one_loss(beside(root, k, problems), chosen, problems) for k in ("plain", kind)}
    for live_one, s in zip(found["plain"], found[kind], strict=True):
        names = FLOATS if kind == "hidden" else ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy")
        same_numbers(s, live_one, 1e-4, names)
        assert (s.tops.teacher_ids[:, :6] == live_one.tops.teacher_ids[:, :6]).all()
        if kind == "top-k":
            assert np.isnan(s.forward_kl).all()
            assert (s.tops.teacher_ids[:, 6:] == -1).all()
            likely = live_one.teacher_rank < 6
            assert (s.teacher_rank == np.where(likely, live_one.teacher_rank, -1)).all()
            rest = np.log1p(-np.exp(live_one.tops.teacher_logp[:, :6]).sum(1))
            np.testing.assert_allclose(s.tops.teacher_tail, rest, rtol=1e-3, atol=1e-3)
            known = np.isfinite(s.tops.student_other)
            np.testing.assert_allclose(s.tops.student_other[known], live_one.tops.student_other[known], rtol=1e-3)
            with pytest.raises(InputError, match="not finite"):
                TokenRecord.of(s)


def test_what_a_cache_does_not_know_is_not_invented(root, problems) -> None:
    engine = beside(root, "hidden", problems)
    chosen = replace(of_catalogue(("word_kd",)), student=question, teacher=question, rollouts=OnPolicy(1))
    groups = drawn(engine, chosen, problems[:1])
    (s,) = measure(Stage(engine, replace(chosen, gates=(Correct(),))), [[_wrong(j) for j in g] for g in groups])
    assert np.isnan(s.teacher_logp).all()
    assert np.isfinite(s.student_logp).all()


def _wrong(judged: Judged) -> Judged:
    return replace(judged, verdict=replace(judged.verdict, status="wrong"))


# -- live ----------------------------------------------------------------------------------------------------------

WRITERS = {
    "student": (OnPolicy(2), "student"),
    "teacher": (ByTeacher(2), "teacher"),
    "mixture": (TokenMixture(2, teacher_share=0.4), "student"),
}


@pytest.mark.parametrize("adapter", [None, "lora:r=4,alpha=8"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("refresh", [LIVE, Refresh(1, 0.3)], ids=str)
def test_live_is_what_training_writes_and_measures(tiny, adapter, writer: str, refresh) -> None:
    rollouts, author = WRITERS[writer]
    engine = tiny(adapter=adapter, refresh=refresh, dtype=torch.float32)
    chosen = recipe(refresh=refresh, rollouts=rollouts, token_weight=SkipFirst(2), terms=(Distill(ReverseKL()),))
    assert train_step(chosen, State(engine, Clock(0, 4)), PROBLEMS[:3], verify) is not None
    stage = Stage(engine, chosen, verify, run="r", step=1)
    *parts, whole = live(stage, PROBLEMS[1], (0, 0), 1)
    groups = drawn(engine, chosen, PROBLEMS[1:2])
    (rollout,) = [j.rollout for j in groups[0] if j.rollout.index == 1]
    assert whole.token_ids == rollout.tokens
    assert (whole.author, whole.stop, whole.index, whole.source) == (author, rollout.stop, 1, "live")
    assert [p.start for p in parts] == list(range(len(whole)))
    together(parts, whole)
    alone = measure(stage, compared(chosen, [Judged(rollout, verify(rollout))], {}))[0]
    same_numbers(alone, whole, 1e-6)
    assert (alone.verdict, alone.why, alone.weights.tolist()) == (whole.verdict, whole.why, whole.weights.tolist())


def together(parts: list[Seen], whole: Seen) -> None:
    """Pieces side by side are the whole."""
    for name in (*FLOATS, "values"):
        found = np.concatenate([getattr(p, name) for p in parts], -1)
        np.testing.assert_allclose(found, getattr(whole, name), rtol=2e-5, atol=2e-5, err_msg=name)
    assert "".join(p.completion for p in parts) == whole.completion
    assert sum((p.why for p in parts), ()) == whole.why
    assert all((p.student_prompt, p.prompts) == (whole.student_prompt, whole.prompts) for p in parts)
    for p in parts:
        assert p.alternatives(0)[0].token == whole.alternatives(p.start)[0].token
        assert p.pieces.keys() <= whole.pieces.keys()


@pytest.mark.parametrize("writer", WRITERS)
def test_live_beside_another_model(root, problems, writer: str) -> None:
    """One of them ends with another token than the student: that is one event, and shown as the student's."""
    engine = beside(root, "teacher", problems)
    theirs, mine = (engine.tokenizer.convert_tokens_to_ids(t) for t in (END, "<|im_end|>"))
    rollouts, author = WRITERS[writer]
    chosen = replace(recipe(refresh=EXTERNAL, teacher=question), rollouts=rollouts.grouped(4))
    chosen = replace(chosen, sampling=replace(chosen.sampling, max_new_tokens=60, temperature=1.5))
    written = [judged.rollout for judged in drawn(engine, chosen, problems[:1], (0, 3))[0]]
    for index in (0, max(range(4), key=lambda i: written[i].stop)):  # "stop" sorts behind "length"
        *parts, whole = live(Stage(engine, chosen), problems[0], (0, 3), index)
        assert whole.token_ids == written[index].tokens
        together(parts, whole)
        assert whole.author == author
    assert whole.stop == "stop"
    assert whole.token_ids[-1] == mine or (writer == "mixture" and whole.token_ids[-1] == theirs)


def test_texts_come_as_a_whole(tiny, root, problems) -> None:
    (whole,) = live(Stage(tiny(), recipe(rollouts=FromDataset(), terms=(CrossEntropy(),))), PROBLEMS[0])
    assert whole.completion.startswith(PROBLEMS[0].solution or "?")
    assert (whole.author, set(whole.why)) == ("dataset", {COUNTED})
    near(whole.values[0], -whole.student_logp)
    engine = beside(root, "hidden", problems)
    *parts, whole = live(Stage(engine, recipe(refresh=EXTERNAL, teacher=question)), problems[0])
    assert np.isnan(whole.teacher_logp).all()
    assert all(np.isnan(p.teacher_logp).all() for p in parts)


@pytest.mark.parametrize("adapter", [None, "lora:r=4,alpha=8"])
def test_a_live_rollout_may_be_left_at_any_time(tiny, adapter) -> None:
    engine = tiny(adapter=adapter, refresh=Refresh(1, 0.3), dtype=torch.float32)
    chosen = recipe(refresh=Refresh(1, 0.3))
    assert train_step(chosen, State(engine, Clock(0, 4)), PROBLEMS[:3], verify) is not None
    stage, before = Stage(engine, chosen, verify), state_of(engine)
    whole = list(live(stage, PROBLEMS[0]))[-1]
    for n in (1, 3):
        going = live(stage, PROBLEMS[0])
        for _ in range(n):
            next(going)
            assert state_of(engine) == before, "also while somebody looks at a token"
            assert torch.is_grad_enabled()
        going.close()
        assert state_of(engine) == before
    again = list(live(stage, PROBLEMS[0]))[-1]
    same_numbers(again, whole, 0.0)
    polls = iter([False] * 3 + [True] * 9)
    *parts, cut = live(stage, PROBLEMS[0], stopped=lambda: next(polls))
    assert (len(parts), len(cut), cut.stop) == (3, 3, "cancelled")
    assert set(cut.why) == {"not learnt: cancelled"}
    assert cut.verdict is not None
    assert cut.verdict.status == "unjudged"
    assert not cut.weights.any()


def state_of(engine: Engine) -> list[object]:
    """What a generation could have left changed about the modules."""
    modules = list(engine.student.modules())
    forwards = ["forward" in m.__dict__ for m in modules]
    weights = [float(p.detach().double().sum()) for p in engine.student.parameters()]
    off = [getattr(m, "_disable_adapters", None) for m in modules]
    return [forwards, [m.training for m in modules], weights, off]


def test_a_branch_keeps_its_prefix(tiny) -> None:
    engine, chosen = tiny(dtype=torch.float32), recipe(terms=(Distill(ForwardKL()),))
    stage = Stage(engine, chosen, verify, problems={p.id: p for p in PROBLEMS})
    whole = list(live(stage, PROBLEMS[2]))[-1]
    kept, copy = whole.token_ids, whole.forward_kl.copy()
    other = next(a.token for a in whole.alternatives(4) if not a.written)
    for author in ("student", "teacher"):
        first, *parts, new = branch(stage, whole, 4, other, author)  # type: ignore[arg-type]
        assert first.token_ids == new.token_ids[:4] == kept[:4]
        for name in FLOATS:
            np.testing.assert_array_equal(getattr(first, name), getattr(whole, name)[:4])
        assert new.token_ids[4] == other
        together([replace(first, pieces={}), *parts], new)
        assert new.author == author
        assert new.rollout.startswith(whole.rollout)
        assert new.rollout != whole.rollout
        assert new.verdict is not None
        # the tokens behind are the author's own: what it would write behind that prefix
        request = Request(PROBLEMS[2], chosen.student, author, 0, (4, other))  # type: ignore[arg-type]
        again = list(branch(stage, whole, 4, other, author))[-1]  # type: ignore[arg-type]
        assert again.token_ids == new.token_ids, request
    assert whole.token_ids == kept
    np.testing.assert_array_equal(whole.forward_kl, copy)
    with pytest.raises(InputError, match="no token 99"):
        next(branch(stage, whole, 99, 0))


def test_a_prompt_without_room_is_refused(tiny) -> None:
    long = replace(PROBLEMS[0], question="x" * 5000)
    with pytest.raises(InputError, match="nothing can be written"):
        next(live(Stage(tiny(), recipe()), long))


def test_a_topk_term_is_seen_whole(tiny) -> None:
    """The loss looks at three entries, a person at everything."""
    engine = tiny()
    chosen = recipe(terms=(Distill(ForwardKL(), transforms=(TopK(3),)),))
    for s in one_loss(engine, chosen, PROBLEMS[:2]):
        assert (s.values[0] < s.forward_kl).all()


# -- text ----------------------------------------------------------------------------------------------------------

HOSTILE = (
    "e\u0301 \u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467 \u202eabc\x00\x1b[31m <script>\n\r\t "
    "\ufffd \U0001d4d0"
)


def test_pieces_join_to_the_decoded_text_for_any_bytes(tiny) -> None:
    tokenizer = tiny().tokenizer
    ids = tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert "".join(found) == decoded(tokenizer, ids) == HOSTILE
    first = next(i for i, piece in enumerate(found) if "\u4f60" in piece)
    assert found[first - 2 : first + 1] == ("", "", "\u4f60"), "three bytes, one character"
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 60):
        for _ in range(20):
            some = rng.integers(0, len(tokenizer), n).tolist()
            writing = Writing(tokenizer)
            live_text = "".join(writing.add(t) for t in some) + writing.end()
            assert "".join(pieces(tokenizer, some)) == live_text == decoded(tokenizer, some)
            assert len(pieces(tokenizer, some)) == n
    assert pieces(tokenizer, []) == ()


def test_a_decoder_that_rewrites_itself_still_joins() -> None:
    class Strips:
        """As sentencepiece: the first space is not there, and words alone lose theirs."""

        def decode(self, ids, skip_special_tokens=False):
            return "".join({0: " a", 1: " b", 2: "'", 3: "s"}[i] for i in ids).strip().replace(" '", "'")

    for ids in ([0, 1, 2, 3], [1, 0], [2, 0, 2], [3] * 5):
        assert "".join(pieces(Strips(), ids)) == Strips().decode(ids)


def test_prompts_show_their_special_tokens(tiny) -> None:
    (s, _) = measure(Stage(tiny(), recipe()), drawn(tiny(), recipe(), PROBLEMS[:1]))
    for ids, words in ((s.student_prompt, s.prompts[0]), (s.teacher_prompt, s.prompts[1])):
        assert len(ids) == len(words)
        assert words[0] == "<|im_start|>"
        assert PROBLEMS[0].question in "".join(words)
    assert (PROBLEMS[0].solution or "?") in "".join(s.prompts[1])


def test_diagnostics_read_what_was_seen(tiny) -> None:
    seen = measure(Stage(tiny(), recipe(terms=(Distill(ForwardKL()),))), drawn(tiny(), recipe(), PROBLEMS[:1]))
    record = TokenRecord.of(seen[0])
    near(record.divergence, seen[0].forward_kl)
    near(TokenRecord.of(seen[0], "jsd").divergence, seen[0].jsd)
    assert record.text == seen[0].text
    near(record.difference, seen[0].difference)
    assert record.counted.all()


def test_smollm2_opsd_adds_up() -> None:
    """The embedded model under its own recipe, in float32: loss, live pieces, text."""
    chosen = choose("opsd", ()).at(Clock(0, 4))
    chosen = replace(chosen, sampling=Sampling(8, 1.1, 0.95, 20))
    loaded, lora = load("smollm2", dtype=torch.float32), "lora:r=4,alpha=8"
    engine = Engine(loaded, adapter=lora, refresh=FROZEN, settings=EngineSettings())
    problems = [replace(p, question=f"{p.question}? Say it in one line.") for p in PROBLEMS[:2]]
    stage = Stage(engine, chosen, verify)
    *parts, whole = live(stage, problems[0], (0, 0))
    groups = drawn(engine, chosen, problems)
    assert whole.token_ids == groups[0][0].rollout.tokens
    for name in FLOATS:
        found = np.concatenate([getattr(p, name) for p in parts])
        np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-4, atol=2e-4, err_msg=name)
    one_loss(engine, chosen, problems)
