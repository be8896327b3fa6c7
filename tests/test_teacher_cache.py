"""A teacher asked once is the teacher asked now: through both commands, and refused where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import TEMPLATE, build_tiny
from workbench import cache_teacher, opsd
from workbench.divergence import Head
from workbench.divergence.transforms import Rest
from workbench.engine.caching import likeliest
from workbench.engine.distillkit import Bin, Compression
from workbench.engine.loading import load
from workbench.errors import InputError
from workbench.parts.contexts import with_solution_v1
from workbench.planning import plan
from workbench.records import Case
from workbench.train.run_directory import read_jsonl

FLAGS = "--problems sums:terms=2,maximum=9 --limit 6 --eval-problems 2 --batch 2 --max-new-tokens 40 --recipe opsd_v1"
FLAGS += " --eval-tokens 4 --lr 1e-3 --adapter none --progress plain --save-every 1 --set rollouts=FromDataset()"
ALONE = ["--micro-tokens", "1"]
"""Every completion scored by itself, as the cache scores it: a batch rounds otherwise."""
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    build_tiny(root / "student", specials=(END,))
    build_tiny(root / "teacher", seed=3, hidden_size=96, vocab_size=300, specials=(END,))
    build_tiny(root / "another", seed=4, hidden_size=96, vocab_size=300, specials=(END,))
    other = TEMPLATE.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}" + END)
    build_tiny(root / "ends", seed=3, hidden_size=96, specials=(END,), end=END, template=other)
    return root


@pytest.fixture
def at(models: Path, tmp_path: Path, monkeypatch):
    """`at.cache("teacher", "--hidden", "--out", "c")` and `at.run("c", "--name", "a")`, below tmp_path."""
    monkeypatch.chdir(tmp_path)

    class Commands:
        def cache(self, teacher: str, *flags: str) -> int:
            who = ["--model", str(models / "student"), "--teacher", str(models / teacher)]
            return cache_teacher.main([*who, *FLAGS.split(), *flags])

        def run(self, teacher: str, *flags: str) -> int:
            path = models / teacher if (models / teacher).exists() else tmp_path / teacher
            return opsd.main(["--model", str(models / "student"), "--teacher", str(path), *FLAGS.split(), *flags])

        def weights(self, name: str) -> str:
            return json.loads(Path("runs", name, "status.json").read_text())["weights_sha256"]

        def numbers(self, name: str) -> list[dict]:
            rows = read_jsonl(Path("runs", name, "metrics.jsonl"))
            return [{k: row[k] for k in ("loss", "grad_norm", "tokens_trained", "kept")} for row in rows]

    return Commands()


def told(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


# -- equal to the live teacher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["teacher", "ends"])
def test_hidden_states_train_to_the_bit(at, capsys, teacher) -> None:
    """Bug: an offline teacher whose losses are some factor off, over other tokens. Here: same tokens, loss, weights.

    `ends` ends its turns with another token than the student, and has a template of its own.
    """
    assert at.cache(teacher, "--hidden", "--out", "c") == 0
    assert at.run(teacher, "--name", "live", "--steps", "2", *ALONE) == 0
    capsys.readouterr()
    assert at.run("c", "--name", "read", "--steps", "2", *ALONE) == 0
    assert "all 6 completions of the run are recorded" in told(capsys)
    assert at.numbers("live") == at.numbers("read")
    assert at.weights("live") == at.weights("read")
    assert at.run("c", "--name", "parts", "--steps", "1", *ALONE) == 0
    assert at.run("c", "--name", "parts", "--steps", "2", "--resume", *ALONE) == 0
    assert at.weights("parts") == at.weights("read")
    before, after = read_jsonl(Path("runs/read/evaluations.jsonl"))
    assert before["divergence"].keys() == after["divergence"].keys()
    assert len(before["divergence"]) == 2, "held-out completions were recorded too"


def test_hidden_states_hold_at_any_temperature_and_batch(at) -> None:
    assert at.cache("teacher", "--hidden", "--out", "c") == 0
    for name, teacher in (("live", "teacher"), ("read", "c")):
        assert at.run(teacher, "--name", name, "--steps", "1", "--temperature", "0.7") == 0
    live, read = at.numbers("live")[0], at.numbers("read")[0]
    assert read["loss"] == pytest.approx(live["loss"], rel=1e-5)
    assert read["grad_norm"] == pytest.approx(live["grad_norm"], rel=1e-4)


def test_sixteen_bits_are_near(at) -> None:
    assert at.cache("teacher", "--hidden", "--store", "bfloat16", "--out", "c") == 0
    assert at.run("c", "--name", "read", "--steps", "1") == 0
    assert at.run("teacher", "--name", "live", "--steps", "1") == 0
    assert at.numbers("read")[0]["loss"] == pytest.approx(at.numbers("live")[0]["loss"], rel=0.05)


def test_what_a_teacher_wrote_is_learnt_from_its_cache(at) -> None:
    """The teacher writes while it is cached: its texts come back with what it says about them."""
    writes = ["--set", "rollouts=ByTeacher(2)", "--max-new-tokens", "12"]
    assert at.cache("ends", "--hidden", "--out", "c", *writes) == 0
    assert at.run("c", "--name", "read", "--steps", "2", *writes) == 0
    rows = read_jsonl(Path("runs/read/rollouts.jsonl"))
    assert {row["author"] for row in rows} == {"teacher"}
    assert len({(row["problem"], row["index"]) for row in rows}) == 8
    kept = pq.read_table(next(Path("c").glob("rows-*.parquet"))).to_pylist()
    assert {row["author"] for row in kept} == {"teacher"}
    assert at.run("c", "--name", "cut", "--set", "rollouts=ByTeacher(2)", "--max-new-tokens", "3") == 3
    assert at.run("c", "--name", "more", "--set", "rollouts=ByTeacher(3)", "--max-new-tokens", "12") == 3


def test_completions_of_a_run_can_be_scored(at, capsys) -> None:
    assert at.run("teacher", "--name", "a", "--steps", "3", "--set", "rollouts=OnPolicy()") == 0
    assert at.cache("teacher", "--hidden", "--out", "c", "--rollouts", "runs/a/rollouts.jsonl") == 0
    written = {tuple(row["token_ids"]) for row in read_jsonl(Path("runs/a/rollouts.jsonl"))}
    kept = {tuple(row["tokens"]) for row in pq.read_table("c/rows-00000.parquet").to_pylist()}
    assert kept == written
    Path("odd.jsonl").write_text(json.dumps({"problem": "nowhere", "text": "x"}))
    assert at.cache("teacher", "--hidden", "--out", "d", "--rollouts", "odd.jsonl") == 3
    assert "odd.jsonl line 1: its problem is not in the set" in told(capsys)


# -- the likeliest -----------------------------------------------------------------------------------------------------


def test_the_likeliest_and_their_rest_are_the_distribution() -> None:
    torch.manual_seed(0)
    head, states = (
        Head(torch.randn(50, 8, dtype=torch.float64), temperature=1.3),
        torch.randn(7, 8, dtype=torch.float64),
    )
    words = likeliest(states, head, list(range(7)), 5)
    logp = head.logits(states).log_softmax(-1)
    ids, kept = torch.tensor(words["ids"]).view(7, 5), torch.tensor(words["logp"]).double().view(7, 5)
    assert torch.equal(ids, logp.topk(5).indices)
    mass = kept.exp().sum(-1) + torch.tensor(words["tail_logp"]).double().exp()
    assert torch.allclose(mass, torch.ones(7, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(torch.tensor(words["target_logp"]).double(), logp.diagonal(), atol=1e-6)
    assert torch.allclose(torch.tensor(words["entropy"]).double(), -(logp.exp() * logp).sum(-1), atol=1e-6)
    with pytest.raises(InputError, match="use --hidden"):
        likeliest(states, head, list(range(7)), 50)


@pytest.mark.parametrize("teacher", ["teacher", "ends"])
def test_the_likeliest_train_within_what_was_cut_off(at, teacher) -> None:
    """All but one entry is the whole; fewer is a lower bound that rises with K, as data processing says."""
    pytest.importorskip("workbench.divergence.sparse")
    assert at.run(teacher, "--name", "live", "--steps", "2") == 0
    live = [row["loss"] for row in at.numbers("live")]
    found = {}
    for k in (4, 32, 257):
        assert at.cache(teacher, "--top-k", str(k), "--out", f"k{k}") == 0
        assert at.run(f"k{k}", "--name", f"k{k}", "--steps", "2") == 0
        found[k] = [row["loss"] for row in at.numbers(f"k{k}")]
        assert [row["tokens_trained"] for row in at.numbers(f"k{k}")] == [
            row["tokens_trained"] for row in at.numbers("live")
        ]
    assert found[257] == pytest.approx(live, rel=1e-4)
    assert found[4][0] < found[32][0] < found[257][0]


def test_the_sampled_token_needs_no_more_than_the_likeliest(at) -> None:
    pytest.importorskip("workbench.divergence.sparse")
    sampled = ["--recipe", "opsd_sampled"]
    assert at.cache("teacher", "--top-k", "2", "--out", "k", *sampled) == 0
    for name, teacher in (("live", "teacher"), ("read", "k")):
        assert at.run(teacher, "--name", name, "--steps", "1", *sampled) == 0
    assert at.numbers("read")[0]["loss"] == pytest.approx(at.numbers("live")[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("rest", get_args(Rest))
def test_a_term_on_the_likeliest_trains_from_them_as_from_the_teacher(at, rest) -> None:
    """The cache may hold more than the term compares; to the rounding of a log-prob it stored."""
    narrow = ["--set", f"terms.0.transforms=(TopK(5, rest={rest!r}),)", "--steps", "2"]
    assert at.cache("teacher", "--top-k", "9", "--out", "k") == 0
    assert at.run("teacher", "--name", "live", *narrow) == 0
    assert at.run("k", "--name", "read", *narrow) == 0
    for read, live in zip(at.numbers("read"), at.numbers("live"), strict=True):
        assert read == {key: pytest.approx(x, rel=1e-4) for key, x in live.items()}


# -- refused -----------------------------------------------------------------------------------------------------------


def test_what_differs_is_named(at, models, capsys) -> None:
    assert at.cache("teacher", "--hidden", "--out", "c") == 0
    assert at.cache("teacher", "--top-k", "8", "--out", "k") == 0
    cases = [
        (("k", "--temperature", "0.5"), "temperature 1.2 in the cache, 0.5 in the run"),
        (("c", "--set", "teacher=with_answer"), "prompt"),
        (("c", "--max-new-tokens", "3"), "is not in the cache"),
        (("c", "--limit", "8"), "is not in the cache"),
    ]
    for flags, words in cases:
        assert at.run(*flags, "--dry-run") == 3, words
        assert words in told(capsys)


def test_files_of_another_teacher_are_refused(at, models, capsys) -> None:
    assert at.cache("teacher", "--hidden", "--out", "c") == 0
    assert at.cache("another", "--hidden", "--out", "c") == 3, "one folder, one teacher"
    assert "made with another model" in told(capsys)
    assert at.cache("teacher", "--hidden", "--store", "bfloat16", "--out", "c") == 3
    assert "another dtype: 'bfloat16', not 'float32'" in told(capsys)
    assert at.cache("another", "--hidden", "--out", "d") == 0
    shutil.copy("d/rows-00000.parquet", "c/rows-00001.parquet")
    assert at.run("c", "--dry-run") == 3
    assert "made with another model" in told(capsys)
    Path("c/rows-00001.parquet").write_bytes(Path("c/rows-00000.parquet").read_bytes()[:-20])
    assert at.run("c", "--dry-run") == 3
    assert "cannot be read" in told(capsys)
    Path("c/rows-00001.parquet").unlink()
    shutil.copy("d/head.safetensors", "c/head.safetensors")
    assert at.run("c", "--dry-run") == 3
    assert "is not the head the cache was made with" in told(capsys)


def test_a_run_is_resumed_with_the_rows_it_began_with(at, capsys) -> None:
    """The same teacher, asked again about other completions: what it said is part of the run."""
    assert at.cache("teacher", "--hidden", "--out", "c") == 0
    assert at.run("c", "--name", "a", "--steps", "2") == 0
    assert at.run("c", "--name", "a", "--steps", "3", "--resume") == 0
    assert at.cache("teacher", "--hidden", "--out", "more", "--limit", "7") == 0
    shutil.copy("more/rows-00000.parquet", "c/rows-00000.parquet")
    assert at.run("c", "--name", "a", "--steps", "4", "--resume") == 2
    assert "the teacher is not the one the run started with" in told(capsys)


def test_another_tokenizer_is_refused(at, models, capsys) -> None:
    assert at.cache("teacher", "--hidden", "--out", "c") == 0
    path = Path("c/tokenizer/tokenizer.json")
    data = json.loads(path.read_text())
    words = data["model"]["vocab"]
    words["q"], words["z"] = words["z"], words["q"]
    path.write_text(json.dumps(data))
    assert at.run("c", "--dry-run") == 3
    assert "not the tokenizer the cache was made with" in told(capsys)
    build_tiny(Path("plain"))
    assert at.cache("teacher", "--hidden", "--out", "d") == 0
    assert opsd.main(["--model", "plain", "--teacher", "d", *FLAGS.split(), "--dry-run"]) == 3
    assert "has another tokenizer: the special token '<|endoftext|>'" in told(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "rollouts=OnPolicy()"], "scores completions that the student writes as it learns"),
        (["--set", "rollouts=ByTeacher()"], "needs texts the teacher wrote"),
        (["--set", "terms.0.transforms=(TopK(5, support='student'),)"], "likeliest tokens, which we name"),
        (["--set", "terms.0.transforms=(TopK(5),)"], "knows 4 entries a token"),
    ],
)
def test_a_recipe_that_asks_for_more_is_refused_before_anything_is_written(at, capsys, flags, words) -> None:
    assert at.cache("teacher", "--top-k", "4", "--out", "k") == 0
    assert at.run("k", "--name", "a", *flags) == 2
    said = told(capsys)
    assert words in said
    assert "a cache of its 4 likeliest" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--hidden"], 2, "--out"),
        (["--out", "c"], 2, "--hidden"),
        (["--out", "c", "--hidden", "--recipe", "sft"], 2, "compares with no teacher"),
        (["--out", "c", "--hidden", "--set", "rollouts=OnPolicy()"], 2, "--rollouts FILE"),
        (["--out", "c", "--top-k", "0"], 2, "--top-k 0"),
        (["--out", "c", "--hidden", "--recip", "x"], 2, "no flag --recip"),
    ],
)
def test_the_command_says_what_it_takes(at, capsys, flags, code, words) -> None:
    assert at.cache("teacher", *flags) == code
    assert words in told(capsys)
    assert cache_teacher.main(["--out", "c", "--hidden"]) == 2
    assert "--teacher MODEL is missing" in told(capsys)


# -- DistillKit --------------------------------------------------------------------------------------------------------


def bits(numbers, width: int) -> bytes:
    """Integers of some bits, high bit first, padded to a byte."""
    text = "".join(format(int(n), f"0{width}b") for n in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def test_distillkits_bytes_are_read_as_they_are_laid_out() -> None:
    """Known by hand: two exact values, a line c0 + c1 t, and residuals of 4 bits and 1 bit with their scales."""
    compression = Compression(
        d=300,
        k=6,
        exact_k=2,
        exact_dtype="float32",
        polynomial_terms=(0, 1),
        term_dtype="float16",
        residual_bins=(Bin("bfloat16", 4, 3), Bin("float16", 1, 1)),
        delta_encoding=False,
    )
    data = np.array([-0.5, -1.0], "<f4").tobytes() + np.array([-2.0, -0.5], "<f2").tobytes()
    data += (np.array([0.25], "<f4").view("<u4") >> 16).astype("<u2").tobytes() + bits([8 + 1, 8 - 2, 8], 4)
    data += np.array([0.125], "<f2").tobytes() + bits([1], 1)
    expected = [-0.5, -1.0, -2.0 + 0.25, -2.5 - 0.5, -3.0, -3.5 + 0.125]
    assert compression.values(data).tolist() == expected
    steps = Compression(**{**vars(compression), "delta_encoding": True})
    assert steps.values(data).tolist() == np.cumsum(expected).tolist()
    assert compression.ids(bits([299, 0, 7, 256, 1, 128], 9)).tolist() == [299, 0, 7, 256, 1, 128]
    with pytest.raises(InputError, match="ends 1 bytes early"):
        compression.values(data[:-1])


def test_a_parquet_of_distillkits_becomes_a_cache(at, models, capsys) -> None:
    """The k likeliest written in its layout and taken over are the k likeliest that were asked for."""
    k = 8
    flags = ["--temperature", "1.0"]
    assert at.cache("teacher", "--top-k", str(k), "--out", "mine", *flags) == 0
    mine = {row["problem"]: row for row in pq.read_table("mine/rows-00000.parquet").to_pylist()}
    from workbench.cli import parse

    planned = plan(parse(["--model", "x", *FLAGS.split(), *flags]))
    tokenizer = load(str(models / "teacher"), dtype=torch.float32).tokenizer
    rows = []
    for problem in (*planned.train, *planned.held_out):
        text = tokenizer.apply_chat_template(
            with_solution_v1(Case(problem)), tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        row = mine[problem.id]
        n, unknown = len(row["tokens"]), [0] * k
        ids = [unknown] * (len(prompt) - 1) + [row["ids"][i * k : i * k + k] for i in range(n)] + [unknown]
        logp = [[-9.0] * k] * (len(prompt) - 1) + [row["logp"][i * k : i * k + k] for i in range(n)] + [[-9.0] * k]
        rows.append(
            {
                "input_ids": [*prompt, *row["tokens"], 198],  # the template writes a newline after the end
                "compressed_logprobs": [list(np.diff(x, prepend=0).astype("<f4").tobytes()) for x in logp],
                "bytepacked_indices": [list(bits(x, 9)) for x in ids],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), "kit.parquet")
    Path("kit.yml").write_text(
        f"logprob_compressor:\n  d: 300\n  k: {k}\n  exact_k: {k}\n  exact_dtype: float32\n"
        "  polynomial_terms: null\n  residual_bins: []\n  delta_encoding: true\n"
    )
    taken = ["--distillkit", "kit.parquet", "--compression", "kit.yml", *flags]
    assert at.cache("teacher", "--top-k", str(k), "--out", "kit", *taken) == 0
    kept = {row["problem"]: row for row in pq.read_table("kit/rows-00000.parquet").to_pylist()}
    assert kept.keys() == mine.keys()
    for name, row in kept.items():
        assert (row["tokens"], row["ids"], row["prompt_sha256"]) == tuple(
            mine[name][x] for x in ("tokens", "ids", "prompt_sha256")
        )
        assert row["logp"] == pytest.approx(mine[name]["logp"], abs=1e-5)
        assert row["tail_logp"] == pytest.approx(mine[name]["tail_logp"], abs=1e-3)
    assert at.run("kit", "--dry-run", *flags) == 0, "the run finds every completion behind its prompt"
    assert at.run("kit", "--dry-run", "--recipe", "opsd_sampled", *flags) == 2
    assert "log-probs of given tokens" in told(capsys)
    assert at.cache("teacher", "--top-k", "4", "--out", "x", *taken) == 2
