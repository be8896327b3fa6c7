"""Teachers that are not the student, through the command: what is proven, what is refused, and whose numbers are used.

Where a test says "bug", others have shipped it: training that runs to its end and is wrong.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TEMPLATE, build_tiny
from verifiers import Verdict
from workbench import opsd
from workbench.assembly import build_engine
from workbench.config import RunConfig
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.heads import base_model, head_of
from workbench.engine.loading import load
from workbench.engine.roles import Cast
from workbench.engine.teachers import Beside, Local, Place
from workbench.engine.vocabularies import prove, sliced
from workbench.errors import InputError
from workbench.parts.contexts import question
from workbench.parts.refresh import FROZEN, LIVE
from workbench.planning import plan
from workbench.recipe import Optimizer
from workbench.records import Case, Judged, Request
from workbench.train.batches import Denominators, entries, token_rows
from workbench.train.objective import objective
from workbench.train.run_directory import read_jsonl

FLAGS = "--problems sums:terms=2,maximum=9 --limit 8 --eval-problems 4 --batch 2 --lr 1e-3 --max-new-tokens 10"
FLAGS += " --eval-tokens 6 --adapter none --progress plain --save-every 1"
END = "<|endoftext|>"
OTHER = TEMPLATE.replace("<|im_start|>assistant\n{% endif", "<|im_start|>expert:{% endif")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A student, and teachers that differ from it in one thing each."""
    root = tmp_path_factory.mktemp("models")
    build_tiny(root / "student")
    build_tiny(root / "wide", seed=3, hidden_size=96)
    build_tiny(root / "padded", seed=3, hidden_size=96, vocab_size=300)
    build_tiny(root / "padded_student", vocab_size=280)
    build_tiny(root / "spoken", seed=3, template=OTHER)
    build_tiny(root / "silent", seed=3, template=None)
    build_tiny(root / "brief", seed=3, max_position_embeddings=400)
    build_tiny(root / "short", max_position_embeddings=300)
    # A base and an instruct model of one family: one tokenizer, two ends.
    build_tiny(root / "ends", specials=(END,))
    build_tiny(root / "ends_otherwise", seed=3, hidden_size=96, specials=(END,), end=END, template=OTHER_END)
    build_tiny(root / "permuted", seed=3)
    permute(root / "permuted" / "tokenizer.json")
    return root


OTHER_END = TEMPLATE.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}" + END)


def permute(path: Path) -> None:
    """The same size, the same tokens, two of them in each other's place."""
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["q"], vocabulary["z"] = vocabulary["z"], vocabulary["q"]
    path.write_text(json.dumps(data))


@pytest.fixture
def command(models: Path, tmp_path: Path, monkeypatch):
    """`command("--teacher", ...)` runs the main job below tmp_path; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, model: str = "student") -> int:
        return opsd.main(["--model", str(models / model), *FLAGS.split(), *flags])

    return run


def told(capsys) -> str:
    """What stderr said, its line breaks not counted."""
    return " ".join(capsys.readouterr().err.split())


def built(models: Path, student: str, teacher: str, **changes) -> tuple[Engine, object]:
    """The engine and the recipe that the command would train with."""
    usual = {"problems": "sums:terms=2,maximum=9", "limit": 6, "eval_problems": 0, "max_new_tokens": 12}
    usual |= {"adapter": "none", "device": "cpu", "recipe": "opsd_v1", **changes}
    config = RunConfig(model=str(models / student), teacher=str(models / teacher), **usual)
    planned = plan(config)
    return build_engine(config, planned), planned


def gathered(engine: Engine, planned, author="student", k=1):
    """Entries of freshly written rollouts, and the recipe with its schedules as numbers."""
    recipe = planned.recipe
    context = recipe.teacher if author == "teacher" else recipe.student
    asked = [Request(p, context, author, i, (0, 1)) for p in planned.train for i in range(k)]
    rollouts = engine.generate(asked, recipe.sampling)
    return recipe, entries(engine, recipe, [[Judged(r, Verdict("unjudged"))] for r in rollouts])


def exact(model, prompt, completion, size) -> torch.Tensor:
    """(n, size) logits that predict a completion, by the model's own forward in float64."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = copy.deepcopy(base_model(model)).double()(input_ids=ids, use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1, :size]


# -- another model -----------------------------------------------------------------------------------------------------


def test_another_model_teaches_through_the_command(command, models, capsys) -> None:
    assert command("--teacher", str(models / "padded"), "--name", "a", "--steps", "2") == 0
    said = capsys.readouterr()
    for words in ("student sees", "teacher sees", "tokenizer proven", "heads of 258 and 300 rows", "the teacher's own"):
        assert words in said.err, words
    assert "same context, same weights" not in said.err, "two models do not agree, and need not"
    arms = [a["name"] for a in read_jsonl(Path("runs/a/evaluations.jsonl"))[0]["arms"]]
    assert arms == ["before", "prompt only", "teacher", "teacher's view"]
    facts = json.loads(Path("runs/a/run.json").read_text())
    assert facts["config"]["teacher"] == str(models / "padded")
    assert len(facts["teacher"]["fingerprint"]) == 64
    assert facts["teacher"]["chat_template"] == TEMPLATE


@pytest.mark.parametrize("pair", [("student", "wide"), ("padded_student", "padded"), ("ends", "ends_otherwise")])
def test_loss_is_that_of_both_models_own_logits_in_float64(models, pair) -> None:
    """Width, head, prompts and end tokens of each model are its own; entries that mean the same are compared."""
    engine, planned = built(models, *pair)
    recipe, kept = gathered(engine, planned, k=2)
    loss, signal = objective(recipe, engine, kept, Denominators.of(recipe, kept))
    size, expected = engine.vocabulary, []
    tau = recipe.temperature
    for entry in kept:
        student = exact(engine.student, entry.student_prompt, entry.tokens, size)
        with engine.running("teacher") as model:
            teacher = exact(model, entry.teacher_prompt, entry.tokens, size)
        if pair[0] == "ends":
            theirs, mine = (engine.tokenizer.convert_tokens_to_ids(t) for t in (END, "<|im_end|>"))
            teacher[:, [mine, theirs]] = teacher[:, [theirs, mine]]
        p, q = (teacher / tau).softmax(-1), (student / tau).softmax(-1)
        m = (p + q) / 2
        expected.append(((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2)
    reference = torch.cat(expected)
    assert torch.allclose(signal.values[0].double(), reference, rtol=1e-4, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(float(reference.mean()), rel=1e-5)
    loss.backward()
    gradient = engine.parameters()["model.embed_tokens.weight"].grad
    assert gradient[:size].abs().sum() > 0
    assert not gradient[size:].any(), "what is padding is not trained"


def test_padding_rows_are_never_written(models) -> None:
    """Bug: Qwen2.5's padded heads crash, or ids are clamped; here both heads end where tokens end."""
    engine, planned = built(models, "padded_student", "padded")
    assert len(head_of(engine.student).weight) == 280
    assert [len(engine.head(role).weight) for role in ("student", "teacher")] == [258, 258]
    for author in ("student", "teacher"):
        _, kept = gathered(engine, planned, author, k=4)
        assert max(max(e.tokens) for e in kept) < 258


@pytest.mark.parametrize(
    ("teacher", "words"),
    [("permuted", "entry "), ("ends_otherwise", "special token '<|endoftext|>' is not special for the student")],
)
def test_another_tokenizer_is_refused_with_the_first_difference(command, models, capsys, teacher, words) -> None:
    """Bug: equal sizes taken for equal tokenizers. `permuted` has the same size and the same tokens."""
    assert command("--teacher", str(models / teacher), "--dry-run") == 3
    said = told(capsys)
    assert "has another tokenizer" in said
    assert words in said
    assert "--teacher texts.jsonl" in said


def test_tokenizers_that_split_text_otherwise_are_refused(models) -> None:
    """The same entries under the same ids, put together by other rules: only text can tell."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    def make(merges):
        alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "he"]
        raw = Tokenizer(kinds.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=merges))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=raw)

    one, other = make([("t", "h"), ("h", "e")]), make([("h", "e"), ("t", "h")])
    assert prove(one, make([("t", "h"), ("h", "e")]), [], (258, 258), "it").size == 258
    with pytest.raises(InputError, match=r"becomes \[.* for the student and \[.* for it"):
        prove(one, other, [], (258, 258), "it")
    with pytest.raises(InputError, match="the student has 257 logits for 258 tokens"):
        prove(one, one, [], (257, 258), "it")


def test_a_teachers_limit_is_its_own(command, models, capsys) -> None:
    """Bug: the teacher's prompt cut to the student's limit, the problem gone. Neither is cut, each by its own."""
    assert command("--teacher", str(models / "brief"), "--dry-run") == 3
    said = told(capsys)
    assert "the teacher's model takes 400" in said
    assert "Nothing was cut" in said
    assert command("--teacher", str(models / "wide"), "--name", "a", "--steps", "1", model="short") == 0
    assert "teacher prompts 64" in told(capsys), "longer than the student's 300, and whole"
    engine, planned = built(models, "short", "wide", recipe="opsd")
    _, kept = gathered(engine, planned)
    prompt = engine.prompt(planned.recipe.teacher, Case(planned.train[0]), "teacher")
    assert len(prompt.ids) > engine.max_length
    assert kept[0].teacher_prompt == prompt.ids
    assert planned.train[0].question in engine.tokenizer.decode(kept[0].teacher_prompt)


def test_each_role_is_rendered_by_its_own_template(command, models, capsys) -> None:
    """Bug: a student without a chat template beside a teacher with one; or the teacher in the student's."""
    engine, planned = built(models, "student", "spoken")
    case = Case(planned.train[0])
    assert engine.prompt(question, case).text.endswith("<|im_start|>assistant\n")
    assert engine.prompt(question, case, "teacher").text.endswith("<|im_start|>expert:")
    _, kept = gathered(engine, planned)
    assert engine.tokenizer.decode(kept[0].teacher_prompt).endswith("<|im_start|>expert:"), "and scored behind it"
    assert command("--teacher", str(models / "spoken"), "--dry-run") == 0
    said = told(capsys)
    assert "its own chat template, which is not the student's" in said
    assert "roles end differently" in said
    for flags, model in (
        (["--teacher", str(models / "silent")], "student"),
        (["--teacher", str(models / "wide")], "silent"),
    ):
        assert command(*flags, "--dry-run", model=model) == 3
        assert "has no chat template" in told(capsys)
    Path("t.jinja").write_text(OTHER)
    assert command("--teacher", str(models / "silent"), "--chat-template", "t.jinja", "--dry-run") == 0


def test_two_end_tokens_of_one_meaning(models) -> None:
    """Bug: teacher and student end otherwise, so the student unlearns its end and never stops."""
    engine, planned = built(models, "ends", "ends_otherwise", max_new_tokens=200)
    theirs, mine = (engine.tokenizer.convert_tokens_to_ids(t) for t in (END, "<|im_end|>"))
    assert (engine.speaker("teacher").end, engine.end_of_turn) == (theirs, mine)
    recipe, kept = gathered(engine, planned, "teacher", k=6)
    ended = [e for e in kept if e.judged.rollout.stop == "stop"]
    assert ended
    assert all(e.tokens[-1] == mine and theirs not in e.tokens for e in ended), "it learns to stop with its own"
    assert END not in "".join(e.judged.rollout.text for e in kept)
    state = engine.score("teacher", [kept[0].teacher_prompt], [kept[0].tokens[:1]])
    with engine.running("teacher") as model:
        own = sliced(head_of(model), engine.vocabulary).logits(state)[0]
    seen = engine.head("teacher").logits(state)[0]
    # the product rounds by where a row stands in the head
    assert [float(seen[i]) for i in (mine, theirs)] == pytest.approx([float(own[i]) for i in (theirs, mine)], rel=1e-5)
    assert "its own" in "\n".join(engine.external.lines())
    # pad is the end token here, as in SmolLM2: it counts all the same, once a completion, by place and not by id.
    rows = token_rows(ended, engine.settings.device)
    assert int((rows.ids == mine).sum()) == len(ended)
    assert len(rows.ids) == sum(len(e.tokens) for e in ended)
    counts = Denominators.of(recipe, ended)
    assert counts.tokens == (len(rows.ids),)


def test_a_smaller_type_and_an_adapter_beside_another_model(command, models) -> None:
    teacher = ["--teacher", str(models / "wide"), "--teacher-dtype", "bfloat16", "--adapter", "lora:r=2,alpha=4"]
    assert command(*teacher, "--name", "a", "--steps", "2", "--eval-problems", "0") == 0
    assert command(*teacher, "--name", "b", "--steps", "1", "--eval-problems", "0") == 0
    assert command(*teacher, "--name", "b", "--steps", "2", "--eval-problems", "0", "--resume") == 0
    a, b = (json.loads(Path(f"runs/{n}/status.json").read_text())["weights_sha256"] for n in "ab")
    assert a == b


def test_resume_with_another_teacher_is_refused(command, models, tmp_path, capsys) -> None:
    teacher = build_tiny(tmp_path / "t", seed=3)
    more = ["--eval-problems", "0", "--name", "a"]
    assert command("--teacher", str(teacher), "--steps", "1", *more) == 0
    assert command("--teacher", str(models / "wide"), "--steps", "2", "--resume", *more) == 2
    assert "teacher '" in told(capsys)
    assert command("--steps", "2", "--resume", *more) == 0, "the stored configuration has the teacher"
    build_tiny(tmp_path / "t", seed=4)
    assert command("--steps", "3", "--resume", *more) == 2
    said = told(capsys)
    assert "the teacher is not the one the run started with" in said
    assert "--fork runs/a" in said


def test_a_run_of_before_there_were_teachers_resumes(command) -> None:
    more = ["--eval-problems", "0", "--name", "a"]
    assert command("--steps", "1", *more) == 0
    path = Path("runs/a/run.json")
    facts = json.loads(path.read_text())
    for key in ("teacher", "reference", "teacher_dtype", "teacher_device"):
        facts["config"].pop(key)
    facts.pop("teacher")
    path.write_text(json.dumps(facts))
    assert command("--steps", "2", "--resume", *more) == 0
    assert command("--steps", "3", "--resume", "--teacher", "x.jsonl", *more) != 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe", "sft"], "asks no teacher for anything"),
        (["--recipe", "opsdc"], "moves its teacher towards the student"),
        (["--reference", "x"], "has no third role"),
    ],
)
def test_a_model_that_would_never_be_used_is_refused(command, models, capsys, flags, words) -> None:
    """Bug: a teacher that is loaded, queried and never in the loss."""
    assert command("--teacher", str(models / "wide"), *flags, "--name", "a") == 2
    assert words in told(capsys)
    assert not Path("runs").exists(), "nothing was written"


# -- the third role ----------------------------------------------------------------------------------------------------


def scored(engine: Engine, role) -> torch.Tensor:
    prompt = (1, 2, 3, 4)
    return engine.head(role).logits(engine.score(role, [prompt], [(5, 6, 7)])).detach()


@pytest.mark.parametrize("adapter", [None, "lora:r=2,alpha=4"])
@pytest.mark.parametrize("refresh", [FROZEN, LIVE])
def test_the_reference_is_the_initial_student(models, adapter, refresh) -> None:
    loaded = load(str(models / "student"), dtype=torch.float32)
    engine = Engine(
        loaded, adapter=adapter, refresh=refresh, settings=EngineSettings(), cast=Cast(needs_reference=True)
    )
    before = scored(engine, "student")
    for _ in range(2):
        engine.score("student", [(1, 2)], [(3, 4)]).square().sum().backward()
        engine.update(Optimizer(lr=1e-2))
    assert not torch.allclose(scored(engine, "student"), before)
    assert torch.allclose(scored(engine, "reference"), before, atol=1e-6)
    assert not engine.score("reference", [(1, 2)], [(3,)]).requires_grad
    plain = Engine(
        load(str(models / "student"), dtype=torch.float32), adapter=adapter, refresh=refresh, settings=EngineSettings()
    )
    assert plain.reference is None, "built only where it is asked for"


def test_the_reference_may_be_another_model(models) -> None:
    loaded = load(str(models / "student"), dtype=torch.float32)
    other = Local(str(models / "padded"))
    cpu = torch.device("cpu")
    other.join(Beside(loaded, ["2 + 2"], Place(cpu, cpu)))
    engine = Engine(
        loaded, adapter=None, refresh=FROZEN, settings=EngineSettings(), cast=Cast(None, other, needs_reference=True)
    )
    own = exact(load(str(models / "padded"), dtype=torch.float32).model, (1, 2, 3, 4), (5, 6, 7), 258)
    assert torch.allclose(scored(engine, "reference").double(), own, atol=1e-4)
    assert scored(engine, "teacher").shape == scored(engine, "student").shape == (3, 258)


# -- texts -------------------------------------------------------------------------------------------------------------

TEXTS = ["--recipe", "sft", "--set", "teacher=question", "--set", "rollouts=ByTeacher()", "--eval-problems", "0"]


def texts(path: Path, planned, n: int = 1, skip: int = 0) -> Path:
    rows = [
        {"id": p.id, "completion": f"It is {p.answer}."}
        if i % 2 and n == 1
        else {"question": p.question, "completions": [f"{p.answer}, said {j}." for j in range(n)]}
        for i, p in enumerate(planned.train[skip:])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_of_a_teacher_teach(command, models, capsys, tmp_path) -> None:
    planned = plan(RunConfig(model="x", problems="sums:terms=2,maximum=9", limit=8, eval_problems=0, recipe="sft"))
    file = texts(tmp_path / "t.jsonl", planned)
    more = ["--max-new-tokens", "40", "--teacher", str(file), *TEXTS]
    assert command(*more, "--name", "a", "--steps", "2") == 0
    said = told(capsys)
    assert "8 texts for 8 problems" in said
    assert "all 8 completions of the run are recorded" in said
    rows = read_jsonl(Path("runs/a/rollouts.jsonl"))
    end = load(str(models / "student"), dtype=torch.float32).tokenizer.eos_token_id
    assert {row["author"] for row in rows} == {"teacher"}
    assert all(row["token_ids"][-1] == end and row["text"].endswith((".", "0.")) for row in rows)
    mean = sum(map(sum, (row["divergence"] for row in rows[:2]))) / sum(len(row["token_ids"]) for row in rows[:2])
    assert mean == pytest.approx(read_jsonl(Path("runs/a/metrics.jsonl"))[0]["loss"], rel=1e-5)
    assert command(*more, "--name", "a", "--steps", "3", "--resume") == 0
    file.write_text(file.read_text().replace("It is", "It was"))
    assert command(*more, "--name", "a", "--steps", "4", "--resume") == 2
    assert "fingerprint" in told(capsys)


def test_texts_that_are_not_there_are_refused_before_step_1(command, capsys, tmp_path) -> None:
    planned = plan(RunConfig(model="x", problems="sums:terms=2,maximum=9", limit=8, eval_problems=0, recipe="sft"))
    file = texts(tmp_path / "t.jsonl", planned, skip=1)
    assert command("--teacher", str(file), *TEXTS, "--dry-run") == 3
    assert f"0 texts for problem '{planned.train[0].id}'" in told(capsys)
    assert command("--teacher", str(texts(file, planned, n=2)), *TEXTS, "--dry-run", "--group", "2") == 0
    assert command("--teacher", str(file), *TEXTS, "--dry-run", "--group", "3") == 3
    assert "asked for number 3" in told(capsys)
    for row, words in (({"id": "1"}, "line 1: no completion"), ({"completion": "x"}, "neither id nor question")):
        file.write_text(json.dumps(row))
        assert command("--teacher", str(file), *TEXTS, "--dry-run") == 3
        assert words in told(capsys)


@pytest.mark.parametrize(
    ("recipe", "wants"),
    [("opsd", "likeliest tokens"), ("opsd_sampled", "log-probs of given tokens"), ("gates", "moves its teacher")],
)
def test_a_recipe_that_needs_more_than_texts_is_refused(command, capsys, tmp_path, recipe, wants) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "1", "completion": "x"}))
    assert command("--teacher", "t.jsonl", "--recipe", recipe, "--name", "a") == 2
    said = told(capsys)
    assert wants in said
    if recipe != "gates":
        assert "gives texts the teacher wrote" in said
        assert "Recipes that fit this teacher:" in said
