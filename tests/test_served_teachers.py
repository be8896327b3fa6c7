"""Teachers behind an address: what they are asked, what becomes of it, and that a key goes nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import build_tiny
from tests.serving_double import Double
from tests.test_job import command  # noqa: F401
from workbench.divergence import ConcreteScore, ReverseKL, SparseTeacher, TopK
from workbench.engine.capabilities import fits, refuse_unfit
from workbench.engine.loading import load
from workbench.engine.serving import teacher as teacher_module
from workbench.engine.serving.answers import ROUTE
from workbench.engine.serving.teacher import KEY, ScoringServer, WritingServer
from workbench.engine.teachers import Beside, Local, Named, Place, invite
from workbench.errors import InputError, RecipeError, ServerError, UsageError
from workbench.inspector.measuring import of_logps
from workbench.parts.contexts import question
from workbench.parts.terms import Distill
from workbench.parts.weights import EntropyAbove
from workbench.recipes import ALL
from workbench.records import Problem, Request, Sampling
from workbench.train.run_directory import read_jsonl

PROMPTS, COMPLETIONS = [(5, 6, 7), tuple(range(20, 60))], [(9, 8, 7, 256), (1, 2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("teacher") / "teacher", seed=3, hidden_size=96)


@pytest.fixture
def beside(tiny_folder) -> Beside:
    cpu = torch.device("cpu")
    return Beside(load(str(tiny_folder), dtype=torch.float64), ["2 + 2"], Place(cpu, cpu, "float32"))


def joined(source: str, beside: Beside):
    teacher = invite(source)
    teacher.join(beside)
    return teacher


def test_a_scoring_server_says_what_the_model_itself_says(folder, beside) -> None:
    """The K likeliest, the mass outside and the written token, at the written tokens: no shift of its own."""
    with Double(folder) as double:
        teacher = joined(double.url, beside)
        assert isinstance(teacher, ScoringServer)
        assert teacher.entries == 64
        found = teacher.recall(PROMPTS, COMPLETIONS, 1.0)
    assert isinstance(found, SparseTeacher)
    local = Local(str(folder))
    local.join(beside)
    with local.weights.module() as model:
        rows = [
            model(torch.tensor([[*p, *c]])).logits[0, len(p) - 1 : -1].double().log_softmax(-1)
            for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
    whole = torch.cat(rows)
    logp, ids = whole.topk(64)
    assert torch.equal(found.ids, ids)
    assert torch.allclose(found.logp.double(), logp, atol=1e-5)
    assert found.tail_logp is not None
    assert torch.allclose(found.tail_logp.double().exp(), 1 - logp.exp().sum(-1), atol=1e-5)
    said = torch.tensor([t for c in COMPLETIONS for t in c])
    assert found.target_logp is not None
    assert torch.allclose(found.target_logp.double(), whole.gather(1, said[:, None]).squeeze(1), atol=1e-5)


def test_ends_that_mean_the_same_change_places(tmp_path, beside) -> None:
    """The server is asked about its own end where the student wrote its own."""
    end = "<|endoftext|>"
    student = build_tiny(tmp_path / "student", specials=(end,))
    other = build_tiny(tmp_path / "other", seed=3, specials=(end,), end=end)
    cpu = torch.device("cpu")
    beside = Beside(load(str(student), dtype=torch.float32), ["2 + 2"], Place(cpu, cpu, "float32"))
    with Double(other) as double:
        teacher = joined(double.url, beside)
        assert teacher.exchanged is not None
        theirs, mine = teacher.exchanged
        found = teacher.recall([(5, 6)], [(9, mine)], 1.0)
        assert double.said("/v1/completions")[-1]["prompt"] == [5, 6, 9, theirs]
        row = double.model(torch.tensor([[5, 6, 9]])).logits[0, -1].double().log_softmax(-1).detach()
    assert float(found.target_logp[-1]) == pytest.approx(float(row[theirs]), abs=1e-5)
    place = {int(i): float(x) for i, x in zip(found.ids[-1], found.logp[-1], strict=True)}
    swapped = {mine: theirs, theirs: mine}
    assert all(x == pytest.approx(float(row[swapped.get(i, i)]), abs=1e-5) for i, x in place.items())


def test_capabilities_are_probed_and_a_recipe_that_needs_more_is_refused(folder, tmp_path) -> None:
    with Double(folder, most_entries=20) as small, Double(folder) as double, Double(folder, most_entries=0) as text:
        few, teacher, writer = invite(small.url), invite(double.url), invite(text.url)
    assert (few.entries, teacher.entries) == (20, 64)
    assert isinstance(writer, WritingServer)
    assert not isinstance(writer, ScoringServer)
    opd = ALL["opd"]
    with pytest.raises(RecipeError, match="needs its whole distributions"):
        refuse_unfit(ALL["kd"], teacher)
    gated = replace(ALL["gkd"], token_weight=EntropyAbove())
    with pytest.raises(RecipeError, match="needs entropies"):
        refuse_unfit(gated, teacher)
    assert [r.name for r in ALL.values() if fits(r, writer)], "some learn from text alone"
    assert fits(opd, teacher)
    assert not fits(opd, writer)


@pytest.mark.parametrize(("temperature", "words"), [(0.9, "at temperature 1"), (1.0, None)])
def test_another_temperature_is_refused(folder, beside, temperature, words) -> None:
    with Double(folder) as double:
        teacher = joined(double.url, beside)
        if words is None:
            teacher.check((5,), (6,), temperature)
            return
        with pytest.raises(InputError, match=words):
            teacher.recall(PROMPTS, COMPLETIONS, temperature)


def test_another_tokenizer_is_refused_and_one_that_is_not_here_too(tmp_path, folder, beside) -> None:
    other = build_tiny(tmp_path / "other", specials=("<|more|>",))
    with Double(other) as double, pytest.raises(InputError, match="another tokenizer"):
        joined(double.url, beside)
    with Double(folder) as double, pytest.raises(InputError, match=r"cannot be read here.*#FOLDER"):
        joined(double.url + "#/nowhere/at/all", beside)


@pytest.mark.parametrize(
    "spoil",
    [{"prompt_logprobs": None}, {"prompt_logprobs": [None]}, {"prompt_logprobs": [None] * 44}],
)
def test_an_answer_without_log_probs_is_an_error_that_names_the_server(folder, beside, spoil) -> None:
    with Double(folder) as double:
        teacher = joined(double.url, beside)
        double.spoil = spoil
        with pytest.raises(ServerError, match="what are no log-probs of a prompt") as caught:
            teacher.recall(PROMPTS, COMPLETIONS, 1.0)
        assert double.url in str(caught.value)


def test_a_student_learns_on_its_own_text_from_a_server(command, folder, capsys) -> None:  # noqa: F811
    flags = ["--recipe", "opd", "--steps", "1", "--eval-problems", "0", "--group", "2", "--batch", "2", "--name", "a"]
    with Double(folder) as double:
        assert command(*flags, "--teacher", double.url) == 0
        assert command(*flags, "--teacher", str(folder), "--name", "b") == 0
    assert "the 64 likeliest tokens and the written one" in capsys.readouterr().err
    served, local = (read_jsonl(Path("runs", name, "metrics.jsonl")) for name in "ab")
    assert [r["loss"] for r in served] == pytest.approx([r["loss"] for r in local], rel=1e-3)
    a, b = served[0]["accounts"], local[0]["accounts"]
    assert a["tokens"]["scored"] == b["tokens"]["scored"], "its server's tokens are the teacher's"
    assert "score.teacher" in b["role_flops"]
    assert "score.teacher" not in a["role_flops"], "and were computed elsewhere"


def test_texts_of_a_server_are_learnt_and_its_key_is_nowhere(command, folder, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv(KEY, "s3cret-key")
    flags = ["--recipe", "sft", "--set", "teacher=question", "--set", "rollouts=ByTeacher()", "--max-new-tokens", "40"]
    with Double(folder, most_entries=0) as double:
        assert command(*flags, "--teacher", f"{double.url}/v1#gpt", "--steps", "1", "--name", "a") == 0
        assert set(double.keys) == {"Bearer s3cret-key"}
        asked = double.said("/v1/chat/completions")
    assert asked[0]["model"] == "gpt"
    assert asked[0]["messages"][-1]["role"] == "user"
    rollouts = read_jsonl(Path("runs/a/rollouts.jsonl"))
    assert {r["text"] for r in rollouts} == {" 4 + 4 = 8."}
    assert {r["stop"] for r in rollouts} == {"stop"}
    (row,) = read_jsonl(Path("runs/a/metrics.jsonl"))
    assert row["accounts"]["tokens"]["generated"] == {"teacher": sum(len(r["token_ids"]) for r in rollouts)}
    for path in Path("runs/a").rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path
    assert json.loads(Path("runs/a/run.json").read_text())["teacher"]["model"] == "gpt"


# Tokens that are named


def whole(folder, beside) -> torch.Tensor:
    """(N, v) log-probs at the tokens of `COMPLETIONS`."""
    local = Local(str(folder))
    local.join(beside)
    with local.weights.module() as model, torch.no_grad():
        rows = [
            model(torch.tensor([[*p, *c]])).logits[0, len(p) - 1 : -1].double().log_softmax(-1)
            for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
    return torch.cat(rows)


def some_ids(n: int, k: int) -> torch.Tensor:
    return torch.stack([torch.randperm(250, generator=torch.Generator().manual_seed(i))[:k] for i in range(n)])


@pytest.mark.parametrize("beside_k", [0, 5])
def test_a_server_weighs_the_tokens_that_are_named(folder, beside, beside_k) -> None:
    """At the written tokens, by whatever id; the tail is what the entries leave."""
    ids = some_ids(7, 6)
    with Double(folder, names=True) as double:
        teacher = joined(double.url, beside)
        assert teacher.named == 63, "the written token takes a place"
        found = teacher.recall_named(PROMPTS, COMPLETIONS, 1.0, Named(ids, beside_k))
        asked = double.said("/inference/v1/generate")[-1]["sampling_params"]
    assert asked["prompt_logprob_start"] in (2, 39)
    logp = whole(folder, beside)
    for row, said, values, tail in zip(logp, found.ids, found.logp.double(), found.tail_logp.double(), strict=True):
        kept = values > -torch.inf
        got = dict(zip(said[kept].tolist(), values[kept].tolist(), strict=True))
        assert got == pytest.approx({i: float(row[i]) for i in got}, rel=1e-5, abs=1e-5)
        assert float(tail.exp()) == pytest.approx(1 - float(values.exp().sum()), abs=1e-5)
    for row, said, values, mine in zip(logp, found.ids, found.logp, ids, strict=True):
        expected = {*mine.tolist(), *row.topk(beside_k).indices.tolist()}
        assert {*said[values > -torch.inf].tolist()} == expected
    written = torch.tensor([t for c in COMPLETIONS for t in c])
    assert torch.allclose(found.target_logp.double(), logp.gather(1, written[:, None])[:, 0], atol=1e-5)


def test_ends_are_named_by_what_each_calls_its_own(tmp_path) -> None:
    end = "<|endoftext|>"
    student = build_tiny(tmp_path / "student", specials=(end,))
    other = build_tiny(tmp_path / "other", seed=3, specials=(end,), end=end)
    cpu = torch.device("cpu")
    beside = Beside(load(str(student), dtype=torch.float32), ["2 + 2"], Place(cpu, cpu, "float32"))
    with Double(other, names=True) as double:
        teacher = joined(double.url, beside)
        theirs, mine = teacher.exchanged
        found = teacher.recall_named([(5, 6)], [(9, mine)], 1.0, Named(torch.tensor([[7, mine], [theirs, 8]])))
        asked = double.said(ROUTE)[-1]["sampling_params"]["prompt_logprob_token_ids"]
        row = double.model(torch.tensor([[5, 6, 9]])).logits[0, -1].double().log_softmax(-1).detach()
    assert asked == [[7, theirs, 9], [mine, 8, theirs]]
    place = dict(zip(found.ids[1].tolist(), found.logp[1].tolist(), strict=True))
    assert place == pytest.approx({theirs: float(row[mine]), 8: float(row[8])}, abs=1e-5)
    assert float(found.target_logp[1]) == pytest.approx(float(row[theirs]), abs=1e-5)


def test_entries_that_were_named_are_shown_as_no_tops_and_give_no_rank() -> None:
    logp = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    top = logp.topk(4, -1)
    named = SparseTeacher(top.indices, top.values - 1.0, target_logp=top.values[:, 0] - 1.0, ranked=False)
    found = of_logps(logp, named, top.indices[:, 0], top=4)
    assert found.teacher_rank.tolist() == [-1] * 3
    assert (found.tops.teacher_ids == -1).all()
    assert found.tops.student_other == pytest.approx((top.values - 1.0).numpy())
    own = of_logps(logp, replace(named, ranked=True), top.indices[:, 0], top=4)
    assert own.teacher_rank.tolist() == [0] * 3
    assert (own.tops.teacher_ids == top.indices.numpy()).all()


NAMED_WRONGLY = (
    "ignored",
    "one row less",
    "others",
    "permuted",
    "shifted",
    "nan",
    "positive",
    "logits",
    "huge",
    "pickled",
    "text",
)


@pytest.mark.parametrize("how", NAMED_WRONGLY)
def test_wrong_weights_of_named_tokens_are_noticed_at_first_and_later(folder, beside, how) -> None:
    """A matrix says not of which ids it is: what is in both answers has to be the same."""
    with Double(folder, names=True, named=how) as double:
        refused = invite(double.url)
    assert refused.named is None
    assert "named" not in refused.capabilities
    assert "no log-probs of the tokens that were named" in refused.unnamed
    with Double(folder, names=True) as double:
        teacher = joined(double.url, beside)
        double.named = how
        with pytest.raises(ServerError, match="no log-probs of the tokens that were named") as caught:
            teacher.recall_named(PROMPTS, COMPLETIONS, 1.0, Named(some_ids(7, 6)))
        assert double.url in str(caught.value)


def looking(support: str, k: int = 5):
    """opd with a comparison through the k likeliest of somebody."""
    return replace(ALL["gkd"], terms=(Distill(ReverseKL(), transforms=(TopK(k, support=support),)),))


@pytest.mark.parametrize("support", ["student", "union"])
def test_what_cannot_be_named_is_refused_before_a_model_is_loaded(folder, support) -> None:
    with Double(folder) as double, Double(folder, names=True) as able, Double(folder, forbid=(ROUTE,)) as shut:
        teacher, closed, knows = invite(double.url), invite(shut.url), invite(able.url)
    with pytest.raises(RecipeError, match=r"student's likeliest tokens, which we name.*V2 model runner"):
        refuse_unfit(looking(support), teacher)
    with pytest.raises(RecipeError, match="Start it with --enable-scale-out"):
        refuse_unfit(looking(support), closed)
    refuse_unfit(looking(support), knows)
    with pytest.raises(RecipeError, match="larger --max-logprobs"):
        refuse_unfit(looking(support, 64), knows)
    refuse_unfit(looking("teacher", 64), knows)
    counting = replace(looking(support), terms=(Distill(ConcreteScore("uniform"), transforms=(TopK(5, support),)),))
    if support == "student":
        refuse_unfit(counting, knows)
    else:
        with pytest.raises(RecipeError, match=r"ConcreteScore\(.*counts entries even if they have no mass"):
            refuse_unfit(counting, knows)


@pytest.mark.parametrize("term", ["TopK(5, support='student')", "TopK(5, support='union', rest='renormalised')"])
def test_a_student_compared_on_its_own_likeliest_learns_the_same_from_a_server(command, folder, capsys, term) -> None:  # noqa: F811
    flags = ["--recipe", "gkd", "--steps", "2", "--eval-problems", "0", "--batch", "2", "--group", "1"]
    flags += ["--set", "rollouts=OnPolicy()", "--set", f"terms=(Distill(ReverseKL(), transforms=({term},)),)"]
    with Double(folder, names=True) as double:
        assert command(*flags, "--teacher", double.url, "--name", "a") == 0
        assert command(*flags, "--teacher", str(folder), "--name", "b") == 0
    assert "whatever tokens are named, 63 at most" in capsys.readouterr().err
    served, local = (read_jsonl(Path("runs", name, "metrics.jsonl")) for name in "ab")
    assert [r["loss"] for r in served] == pytest.approx([r["loss"] for r in local], rel=1e-4)
    assert [r["grad_norm"] for r in served] == pytest.approx([r["grad_norm"] for r in local], rel=1e-3)


def test_a_text_that_was_cut_has_no_end(folder, tiny) -> None:
    engine = tiny()
    with Double(folder, most_entries=0, cut=True) as double:
        request = Request(Problem("p", "4 + 4"), question, "teacher")
        (rollout,) = invite(double.url).write([request], Sampling(100), engine.pen)
    assert rollout.stop == "length"
    assert rollout.text == " 4 + 4 = 8."
    assert not set(rollout.tokens) & engine.stop_ids


def test_a_key_does_not_travel_in_the_open(monkeypatch) -> None:
    monkeypatch.setenv(KEY, "s3cret-key")
    with pytest.raises(UsageError, match="Use https") as caught:
        invite("http://example.com/v1")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(UsageError, match="no server's address"):
        invite("http://name:s3cret@example.com/v1")


def test_one_of_many_models_is_named(folder, monkeypatch) -> None:
    many = (200, {"data": [{"id": "a"}, {"id": "b"}]})
    monkeypatch.setattr(Double, "do_v1_models", lambda *_: many)
    with Double(folder, most_entries=0) as double:
        with pytest.raises(InputError, match=r"Name it behind a #: --teacher http://\S+#a"):
            invite(double.url)
        assert invite(f"{double.url}#b").facts()["model"] == "b"


def test_what_is_no_end_and_no_number_is_not_learnt(tiny) -> None:
    """A filtered text is no text, and -9999 is how vLLM writes that it has no log-prob."""
    pen, request = tiny().pen, Request(Problem("a", "2 + 2?"), question)
    for reason in ("content_filter", "tool_calls", None):
        answer = {"choices": [{"message": {"content": "4"}, "finish_reason": reason}]}
        with pytest.raises(ServerError, match="no end of a text"):
            teacher_module._read(answer, "http://here", request, Sampling(), pen)
    row = {"7": {"logprob": -9999.0}, "8": {"logprob": -0.1}}
    with pytest.raises(ServerError, match="no number"):
        teacher_module._scored({"choices": [{"prompt_logprobs": [None, row]}]}, "http://here", [5, 7], 1)
