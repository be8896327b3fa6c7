"""The screens Live and Compare: their handlers as plain functions, on the tiny model; the real one where it matters."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pytest

pytest.importorskip("gradio", reason="the app's extra is not installed")

from workbench.errors import InputError, UsageError
from workbench.recipes import ALL
from workbench.screens import asking, comparing, fields, live, recorded, rolling, saving, trees
from workbench.screens.asking import OWN, Ask
from workbench.screens.links import Link
from workbench.screens.rolling import Seat
from workbench.screens.scoring import Wish
from workbench.screens.session import MODEL, STORE, Kept, Shelf, Store, Turnstile, Walks
from workbench.screens.sheet import Sheet, node, number, percent, said, shown, visible
from workbench.screens.stage import Stage

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "${alert(1)}",
    "{{alert(1)}}",
    "\x1b[2J",
    "\u202e\u200b",
    "\ud800",
    "</script><b>",
]


@pytest.fixture(scope="module")
def asked(tiny_folder_live):
    """An ask of the tiny model."""
    return Ask(model=str(tiny_folder_live), tokens=12)


@pytest.fixture(scope="module")
def tiny_folder_live(tmp_path_factory):
    from tests.conftest import build_tiny

    return build_tiny(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def seen(asked):
    """A rollout of the tiny model, whole."""
    frames = list(played(rolling.roll, asked))
    return STORE.get(frames[-1].seat.current).seen


def played(work, ask, *more, seat=None, owner="page"):
    """The frames of a handler, behind a ticket as the page takes one."""
    MODEL.join(owner)
    yield from work(ask, seat or Seat(), owner, *more)


# -- the line in front of the model ----------------------------------------------------------------------------------


def test_one_piece_of_work_at_a_time_and_the_second_is_told_so():
    line = Turnstile()
    first, second, third = line.join("a", 100), line.join("b"), line.join("c")
    assert line.waiting(first) == ""
    assert line.waiting(second) == "One rollout at a time: yours is second."
    assert line.waiting(third) == "One rollout at a time: yours is third."
    with line.entered(first) as mine:
        assert mine
        assert line.busy
        first.done = 50
        first.started -= 20.0  # 50 of 100 tokens took 20 s
        assert line.waiting(second) == "One rollout at a time: yours is second, about 20 s."
        assert line.waiting(third) == "One rollout at a time: yours is third."  # nobody knows how long b's will take
    assert not line.busy
    assert line.waiting(second) == ""


def test_the_second_waits_for_the_lock_itself_not_for_gradio():
    line, order = Turnstile(), []
    first, second = line.join("a"), line.join("b")
    inside, go_on = threading.Event(), threading.Event()

    def work():
        with line.entered(first):
            inside.set()
            go_on.wait(10)
            order.append("first")

    def other():
        with line.entered(second) as mine:
            assert mine
            order.append("second")

    threads = [threading.Thread(target=work), threading.Thread(target=other)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    assert order == []
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]


def test_what_is_stopped_while_it_waits_never_holds_the_model():
    line = Turnstile()
    first, second = line.join("a"), line.join("b")
    with line.entered(first):
        line.forget("b")
        with line.entered(second) as mine:
            assert not mine
        assert line.busy, "leaving the line must not free what another holds"
    assert not line.busy
    assert line.ticket("b") is None


def test_an_error_inside_frees_the_model():
    line = Turnstile()
    with pytest.raises(ZeroDivisionError), line.entered(line.join("a")):
        1 / 0  # noqa: B018
    assert not line.busy
    assert line.ticket("a") is None


def test_a_page_that_asks_again_takes_its_first_wish_back():
    line = Turnstile()
    old = line.join("a")
    new = line.join("a")
    assert old.stopped()
    assert not new.stopped()
    assert line.ticket("a") is new


# -- what is held ----------------------------------------------------------------------------------------------------


def test_a_shelf_lets_go_before_it_makes():
    held = []
    shelf: Shelf[str, str] = Shelf(2)

    def make(name):
        def made():
            held.append(len([n for n in "abc" if n in shelf]))
            return name

        return made

    for name in ("a", "b", "a", "c"):
        shelf.get(name, make(name))
    assert held == [0, 1, 1]  # c was made beside one thing, not two
    assert "b" not in shelf
    assert "a" in shelf


def test_the_store_is_bounded_by_tokens_and_its_ids_cannot_be_guessed(seen):
    store = Store(tokens=3 * (len(seen) + 64))
    names = [store.name() for _ in range(5)]
    assert len(set(names)) == 5
    for name in names:
        store.put(Kept(seen), name)
    assert [store.get(name) is not None for name in names] == [False, False, True, True, True]
    store.drop([names[4], "never"])
    assert len(store) == 2
    assert store.get(None) is None
    assert store.get({"a": 1}) is None


def test_walks_are_few():
    walks = Walks(2)
    for name in "abc":
        walks.put(name, iter(()))
    assert walks.get("a") is None
    assert walks.get("c") is not None
    walks.clear()
    assert walks.get("c") is None


# -- from fields to what is done -------------------------------------------------------------------------------------


def test_every_recipe_is_offered_and_those_that_cannot_be_shown_say_why():
    choices = asking.recipe_choices(Ask())
    assert {name for _, name in choices} == set(ALL)
    why = {name: label for label, name in choices}
    assert why["opsd"] == "opsd"
    assert "another model teaches" in why["gkd"]
    assert "no teacher" in why["sft"]


def test_recipes_that_the_problems_do_not_fit_say_so(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": str(i)}) + "\n" for i in range(4)))
    why = asking.why_not("opsd", Ask(problems=str(file)))
    assert "shows the teacher {solution}" in why
    assert asking.why_not("opsdc", Ask(problems=str(file))) == ""


def test_another_model_makes_its_recipes_possible():
    assert asking.why_not("gkd", Ask(other_model="somewhere")) == ""


def test_contexts_are_set_as_a_flag_would():
    recipe = asking.planned(Ask(teacher="with_answer", student="question")).recipe
    assert repr(recipe.teacher) == "with_answer"
    assert repr(recipe.student) == "question"


def test_ones_own_problem_has_somebody_elses_beside_it():
    ask = Ask(recipe="opsd_other_problem", problem=OWN, question="What is 1 + 1?", solution="1 + 1 = 2.", answer="2")
    problem = asking.problem_of(ask)
    assert problem.question == "What is 1 + 1?"
    assert problem.other is not None
    assert problem.other.answer != "2"


def test_an_empty_problem_and_a_foreign_id_are_refused_in_words():
    with pytest.raises(InputError, match=r"no text.*Write it"):
        asking.problem_of(Ask(problem=OWN))
    with pytest.raises(UsageError, match=r"no problem 'x'.*Choose one"):
        asking.problem_of(Ask(problem="x"))
    with pytest.raises(UsageError, match="cannot be written"):
        Ask(tokens=0)
    with pytest.raises(UsageError, match="no recipe 'nope'"):
        asking.planned(Ask(recipe="nope"))


def test_what_will_be_loaded_is_said_with_its_size(tiny_folder):
    text = asking.loading(Ask(model=str(tiny_folder)))
    assert text.startswith(f"Loading {tiny_folder} (")
    assert "GiB on disk" in text


def test_emptied_fields_are_fields_that_were_not_given():
    values = ["smollm2", "opsd", None, None, "", None, None, "", "", None, 8, None, None, None]
    assert fields.ask_of(*values) == Ask(tokens=8)


# -- trees -----------------------------------------------------------------------------------------------------------


def test_trees_hold_text_as_text():
    tree = [node("p", text, kind="note") for text in HOSTILE]
    read = json.loads(shown(tree))
    assert [one[2] for one in read] == HOSTILE
    assert shown(tree).isascii()


def test_the_components_templates_are_constant():
    for made in (Sheet(), live.TokenView()):
        assert "{{" not in made.html_template + made.css_template
        assert "${" not in made.html_template + made.css_template


def test_texts_are_made_visible():
    assert visible(" a\n") == "\u2423a\u21b5"
    assert visible("") == "(nothing)"
    assert visible("  ") == "\u2423\u2423"
    assert visible("\x1b") == "\\x1b"
    assert number(float("nan")) == "not known"
    assert number(-0.00001) == "0.000"
    assert percent(0.0) == "100.0 %"
    assert said("a\x1bb") == ["p", {"class": "note"}, "a\\x1bb"]


# -- model work ------------------------------------------------------------------------------------------------------


def test_a_rollout_comes_in_pieces_and_ends_as_a_whole(asked):
    frames = list(played(rolling.roll, asked))
    last = frames[-1]
    assert not last.running
    assert last.off == 0
    seen = STORE.get(last.seat.current).seen
    assert seen.source == "live"
    assert seen.verdict is not None
    assert seen.stop in ("stop", "length")
    assert 1 <= len(seen) <= 12
    assert (seen.run, seen.rollout) == ("", last.seat.current)
    assert not MODEL.busy
    assert MODEL.ticket("page") is None
    assert STORE.latest("page").seen is seen


def test_the_rollout_on_screen_is_the_one_that_training_would_draw(asked, seen):
    from workbench.records import Request

    engine, recipe = asking.engine_of(asked), asking.planned(asked).recipe
    request = Request(asking.problem_of(asked), recipe.student, seed=(0,))
    (rollout,) = engine.generate([request], recipe.sampling)
    assert rollout.tokens == seen.token_ids


def test_a_rollout_has_a_link_while_it_is_held_and_the_other_screens_keep_their_run(asked, tmp_path):
    stage = Stage(tmp_path, (), ("m",), None, None, None, None)
    seat = [frame for frame in played(rolling.roll, asked) if frame.seat][-1].seat
    place = live.placed(seat, Link("tiny", "3/p/student/0", 5, "runs"))
    assert place == Link("tiny", seat.current, None, "runs")
    at = live.moved(SimpleNamespace(_data={"run": "", "rollout": seat.current, "t": 2}), place)
    assert at == Link("tiny", seat.current, 2, "live") == live.placed(seat, at)
    link = Link.parse(dict(parse_qsl(at.query[1:])))
    assert link == Link("", seat.current, 2, "live"), "a run that has nothing to do with it is no part of its link"
    assert STORE.get(recorded.opened(stage, link)).asked == asked
    STORE.drop([seat.current])
    with pytest.raises(InputError, match=r"no longer held.*Roll out again"):
        recorded.opened(stage, link)
    for made_up in ("live-", "live-" + "x" * 13, "live-../../../../"):
        with pytest.raises(UsageError, match="names no rollout"):
            Link(rollout=made_up)


def test_steps_make_the_same_rollout_one_token_at_a_time(asked, seen):
    seat = Seat()
    for n in range(1, 6):
        frames = list(played(rolling.step, asked, seat=seat))
        seat = frames[-1].seat
        assert not MODEL.busy, "between two clicks the model is free"
        assert len(STORE.get(seat.current).seen) == n
        assert STORE.get(seat.current).seen.stop == "cancelled"
    assert len(seat.ids) == 1
    assert STORE.get(seat.current).seen.token_ids == seen.token_ids[:5]
    while STORE.get(seat.current).seen.verdict is None:
        seat = list(played(rolling.step, asked, seat=seat))[-1].seat
    assert STORE.get(seat.current).seen.token_ids == seen.token_ids
    after = list(played(rolling.step, asked, seat=seat))[-1].seat
    assert after.current != seat.current, "a finished rollout is followed by the first token of another"


def test_steps_of_another_ask_begin_another_rollout(asked):
    seat = list(played(rolling.step, asked))[-1].seat
    other = list(played(rolling.step, replace(asked, seed=5), seat=seat))[-1].seat
    assert other.current != seat.current
    assert other.ids == (seat.current, other.current)


def test_stop_ends_a_rollout_at_the_next_token_and_keeps_it(asked, monkeypatch):
    monkeypatch.setattr(rolling, "INTERVAL", 0.0)
    frames = played(rolling.roll, asked)
    seat = Seat()
    while not seat.current:
        seat = next(frames).seat or seat
    assert MODEL.busy
    MODEL.forget("page")
    last = list(frames)[-1]
    kept = STORE.get(last.seat.current).seen
    assert kept.stop == "cancelled"
    assert 1 <= len(kept) < 12
    assert not MODEL.busy


def test_a_closed_page_frees_the_model_and_the_next_rollout_starts(asked, monkeypatch):
    monkeypatch.setattr(rolling, "INTERVAL", 0.0)
    MODEL.join("page")
    values = [asked.model, "opsd", "", "", "", "", "", "", "", "", 12, None, None, 0]
    outputs = live.roll(Page("page"), Seat(), *values)
    seat = Seat()
    while not seat.current:
        seat = next(outputs)[0]
    outputs.close()  # what gradio does on Stop and when a tab is closed: GeneratorExit
    assert not MODEL.busy
    assert STORE.get(seat.current).seen.stop == "cancelled"
    assert not list(played(rolling.roll, asked, owner="another"))[-1].running


class Page:
    """As much of gr.Request as the handlers read."""

    def __init__(self, name):
        self.session_hash = name


def test_an_event_that_comes_after_stop_does_nothing(asked):
    (frame,) = rolling.roll(asked, Seat(), "nobody joined")
    assert not frame.running
    assert "Stopped before it began" in shown(frame.status)


def test_a_branch_keeps_what_stands_before_and_the_original(asked, seen):
    parent = seen.rollout
    other = next(a.token for a in seen.alternatives(3) if not a.written and a.token < 256)
    for author in ("student", "teacher"):
        frames = list(played(rolling.branch, asked, Wish(parent, 3, other, "x", author), seat=Seat(parent, (parent,))))
        last = frames[-1]
        kept = STORE.get(last.seat.current)
        assert kept.seen.token_ids[:4] == (*seen.token_ids[:3], other)
        assert len(kept.seen) > 4
        assert (kept.parent, kept.at) == (parent, 3)
        assert last.select == 3, "the panel stays open where the branch begins"
        assert STORE.get(parent).seen is not kept.seen
        assert STORE.get(parent).seen.token_ids == seen.token_ids
        assert last.seat.ids == (parent, last.seat.current)
        listed = shown(trees.rollouts([(n, STORE.get(n)) for n in last.seat.ids], last.seat.current))
        assert "from rollout 1 at token 3" in listed
        assert f"the {author} goes on" in listed


def test_a_branch_of_what_is_gone_is_refused_in_words(asked):
    for wish in (Wish("gone", 0, 1, ""), Wish("live-x", 99, 1, "")):
        (frame,) = played(rolling.branch, asked, wish)
        assert "no longer held" in shown(frame.status)
        assert MODEL.ticket("page") is None, "nobody waits behind it"


def test_scoring_again_says_that_it_is_recomputed(asked, seen):
    frames = list(played(rolling.score_again, asked, seat=Seat(seen.rollout, (seen.rollout,))))
    again = STORE.get(frames[-1].seat.current)
    assert again.seen.source == "recomputed"
    assert again.seen.token_ids == seen.token_ids
    assert again.parent == seen.rollout
    assert again.seen.student_logp == pytest.approx(seen.student_logp, abs=1e-5)
    assert "recomputed" in shown(rolling.summary(again))


def test_what_cannot_be_loaded_is_said_where_the_rollout_would_be():
    frames = list(played(rolling.roll, Ask(model="./nowhere")))
    assert not frames[-1].running
    assert "no folder ./nowhere" in shown(frames[-1].status)
    assert not MODEL.busy


def test_a_bug_ends_the_page_s_wait(asked, monkeypatch, capsys):
    monkeypatch.setattr(rolling, "paced", lambda pieces: 1 / 0)
    MODEL.join("page")
    values = [asked.model, "opsd", "", "", "", "", "", "", "", "", 12, None, None, 0]
    last = list(live.roll(Page("page"), Seat(), *values))[-1]
    assert "This is a bug" in last[1]
    assert not MODEL.busy
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_checkpoint_stands_beside_the_teacher_it_had(tiny_folder_live, tmp_path, capsys):
    from workbench import opsd

    run = tmp_path / "runs" / "a"
    flags = "--problems sums --limit 6 --eval-problems 0 --steps 1 --batch 2 --max-new-tokens 4 --lr 0.01"
    more = ["--adapter", "none", "--output", str(run.parent), "--name", "a", "--progress", "quiet"]
    code = opsd.main(["--model", str(tiny_folder_live), *flags.split(), *more])
    assert code == 0, capsys.readouterr().err
    offered = {value: label for label, value in asking.model_choices(run.parent)}
    step = run / "checkpoints" / "step-00000001"
    assert offered[str(step)] == "a: step 1, beside its own teacher"
    assert offered[str(run / "final")] == "a: final model, in both roles"
    same = Ask(model=str(step), student="question", teacher="question", tokens=6)
    frames = list(played(rolling.roll, same))
    seen = STORE.get(frames[-1].seat.current).seen
    assert (seen.reverse_kl > 1e-6).any(), "the student has moved, its teacher has not"
    final = replace(same, model=str(run / "final"))
    frames = list(played(rolling.roll, final))
    seen = STORE.get(frames[-1].seat.current).seen
    assert (abs(seen.reverse_kl) < 1e-6).all(), "one model in both roles, shown the same"


# -- compare ---------------------------------------------------------------------------------------------------------


def test_one_rollout_under_two_recipes(asked):
    left, right = replace(asked, recipe="opsd"), replace(asked, recipe="opsd_other_problem")
    MODEL.join("page")
    frames = list(comparing.compare(left, right, "page"))
    last = frames[-1]
    assert not last.running
    a, b = STORE.get(last.left).seen, STORE.get(last.right).seen
    assert a.token_ids == b.token_ids
    assert a.student_logp == pytest.approx(b.student_logp, abs=1e-5), "one student, one prompt"
    assert a.teacher_prompt != b.teacher_prompt
    assert (a.recipe, b.recipe) == ("opsd", "opsd_other_problem")
    text = shown(last.totals)
    assert "reverse KL = KL(student || teacher)" in text
    assert "opsd_other_problem" in text
    kinds = comparing.by_class(a)
    assert sum(count for count, _ in kinds.values()) == (a.weight > 0).sum()
    assert sum(share for _, share in kinds.values()) == pytest.approx(1.0)


def test_equal_sides_are_equal(asked):
    MODEL.join("page")
    last = list(comparing.compare(asked, asked, "page"))[-1]
    a, b = STORE.get(last.left).seen, STORE.get(last.right).seen
    assert a.reverse_kl == pytest.approx(b.reverse_kl, abs=1e-5)
    assert "100 % of it" in comparing.verdict_line(a, b)


def test_models_without_a_common_vocabulary_are_refused(asked, tmp_path):
    from tests.conftest import build_tiny

    other = build_tiny(tmp_path / "other", specials=tuple(f"<x{i}>" for i in range(5)))
    file = other / "tokenizer.json"
    data = json.loads(file.read_text())
    vocab = data["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)
    data["model"]["vocab"] = {name: (at + 7) % len(names) for at, name in enumerate(names)}
    file.write_text(json.dumps(data))
    MODEL.join("page")
    last = list(comparing.compare(asked, replace(asked, model=str(other)), "page"))[-1]
    assert not last.running
    assert "does not share a vocabulary" in shown(last.status)


# -- the model that comes in a package -------------------------------------------------------------------------------


def test_the_embedded_model_from_the_opened_app_to_where_the_roles_part():
    """What a stranger does: open the app, press Roll out, press `n`. Here without a browser: the same numbers."""
    ask = Ask(tokens=12)
    assert ask.model == "smollm2"
    frames = list(played(rolling.roll, ask))
    said_first = shown(frames[0].status)
    assert "Loading smollm2" in said_first
    assert "GiB on disk" in said_first
    kept = STORE.get(frames[-1].seat.current)
    seen = kept.seen
    assert seen.prompts[1] != seen.prompts[0]
    assert "24 + 2 = 26." in "".join(seen.prompts[1]), "the teacher was told the solution"
    assert "24 + 2 = 26." not in "".join(seen.prompts[0])
    assert (seen.reverse_kl >= -1e-6).all()
    parted = int(seen.reverse_kl.argmax())
    assert seen.reverse_kl[parted] > 0.01, "the solution changes what is said somewhere"
    best = max(seen.alternatives(parted), key=lambda a: a.teacher_logp)
    wish = Wish(seen.rollout, parted, best.token, best.text, "teacher")
    last = list(played(rolling.branch, ask, wish, seat=frames[-1].seat))[-1]
    branched = STORE.get(last.seat.current).seen
    assert branched.token_ids[: parted + 1] == (*seen.token_ids[:parted], best.token)
    assert "".join(branched.text[:parted]) == "".join(seen.text[:parted])


def test_files_of_a_rollout_are_the_inspector_s(seen):
    for kind, begins in (("html", "<!doctype html>"), ("csv", "run,rollout"), ("json", "")):
        made = json.loads(saving.file_of(seen, kind))
        assert made["name"] == f"live-sums-24-2-0.{kind}"
        assert made["text"].startswith(begins)
        assert kind != "json" or json.loads(made["text"])
    with pytest.raises(UsageError, match=r"no rollout to save.*Roll out first"):
        saving.file_of(None, "csv")
