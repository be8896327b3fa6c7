"""What a run leaves for others: loaded by the libraries they load it with, and the same model as in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from workbench import export, exporting
from workbench.engine.export import licence_of, refuse_quantised
from workbench.engine.heads import decoder, head_of
from workbench.errors import InputError
from workbench.exporting import engine_of, find
from workbench.model_card import shortened
from workbench.train.run_directory import encode, read_jsonl


@pytest.fixture
def inside(exported_runs: Path, monkeypatch) -> Path:
    monkeypatch.chdir(exported_runs)
    return exported_runs


@torch.no_grad()
def logits_of_run(run: str, which: str) -> torch.Tensor:
    """What the engine computes with the weights of a checkpoint: not the folder under test, and not its code."""
    engine = engine_of(find(Path(run), which))
    ids = torch.tensor([engine.tokenizer("2 + 2 = 4")["input_ids"]])
    return head_of(engine.student).logits(decoder(engine.student)(input_ids=ids, use_cache=False).last_hidden_state[0])


@torch.no_grad()
def logits_of_folder(folder: str) -> torch.Tensor:
    """As a stranger loads it: with transformers, and peft where it is an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    config = Path(folder, "adapter_config.json")
    if config.is_file():
        base = json.loads(config.read_text())["base_model_name_or_path"]
        assert Path(base).is_absolute()
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    return model(input_ids=torch.tensor([tokenizer("2 + 2 = 4")["input_ids"]])).logits[0]


def card_of(folder: str) -> tuple[dict, str]:
    """Front matter as hubs read it, and the text."""
    _, head, body = Path(folder, "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_all_of_a_finished_run_is_the_model_in_memory(inside: Path, capsys) -> None:
    for run, folder in (("runs/full", "runs/full/final"), ("runs/lora", "runs/lora/final/adapter")):
        torch.testing.assert_close(logits_of_folder(folder), logits_of_run(run, "2"), rtol=1e-4, atol=1e-4)
        assert export.main([run]) == 0
        out = capsys.readouterr().out
        assert f"model      {folder}" in out
    assert f"vllm serve {inside / 'model'} --enable-lora --lora-modules trained=runs/lora/final/adapter\n" in out
    assert "transformers chat trained http://localhost:8000\n" in out
    names = {p.name for p in Path("runs/full/final").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert names >= {"tokenizer_config.json", "chat_template.jinja"}
    assert "chat_template" in json.loads(Path("runs/full/final/tokenizer_config.json").read_text())
    assert (logits_of_folder("runs/full/final") - logits_of_run("runs/full", "1")).abs().max() > 1e-3


def test_an_adapter_is_merged_into_a_whole_model(inside: Path, capsys) -> None:
    assert export.main(["runs/lora", "--merged"]) == 0
    out = capsys.readouterr().out
    assert "vllm serve runs/lora/exports/merged-step-00000002\n" in out
    assert "transformers chat runs/lora/exports/merged-step-00000002 http://localhost:8000\n" in out
    torch.testing.assert_close(
        logits_of_folder("runs/lora/exports/merged-step-00000002"),
        logits_of_folder("runs/lora/final/adapter"),
        rtol=1e-4,
        atol=1e-4,
    )
    assert not Path("runs/lora/exports/merged-step-00000002/adapter_config.json").exists()
    front, body = card_of("runs/lora/exports/merged-step-00000002")
    assert front["library_name"] == "transformers"
    assert "Its adapter is merged into the weights." in body
    assert export.main(["runs/lora", "--merged"]) == 0, "it is there already"


def test_a_run_that_went_on_is_merged_again(inside: Path, tmp_path: Path, monkeypatch) -> None:
    """After `--resume --steps N` the first merge is an old model."""
    shutil.copytree("runs/lora", tmp_path / "again", ignore=shutil.ignore_patterns("exports"))
    merged: list[Path] = []

    def write(source, to: Path, *, merge: bool) -> Path:
        merged.append(to)
        return Path(shutil.copytree(tmp_path / "again" / "final" / "adapter", to))

    monkeypatch.setattr(exporting, "write", write)
    for step in (2, 2, 3):
        status = tmp_path / "again" / "status.json"
        status.write_text(json.dumps(json.loads(status.read_text()) | {"step": step}))
        assert export.main([str(tmp_path / "again"), "--merged"]) == 0
    assert [to.name for to in merged] == ["merged-step-00000002", "merged-step-00000003"]


def test_a_run_that_was_killed_gives_its_checkpoint_and_says_so(inside: Path, capsys) -> None:
    assert export.main(["runs/killed"]) == 2
    assert "Export what it saved last: --checkpoint (step 1)" in capsys.readouterr().err
    assert export.main(["runs/killed", "--checkpoint", "--to", "early"]) == 0
    torch.testing.assert_close(logits_of_folder("early"), logits_of_run("runs/full", "1"), rtol=1e-4, atol=1e-4)
    _, body = card_of("early")
    assert "**The run is not finished: this is step 1 of 2.**" in body
    assert "| step 1 | " in body, "what was measured at this step, and nothing later"
    assert "| after | " not in body
    assert export.main(["runs/killed", "--checkpoint", "9"]) == 2
    assert "keeps no such step. It keeps: 1." in capsys.readouterr().err


def test_a_checkpoint_of_an_adapter_alone_and_merged(inside: Path) -> None:
    for flag, folder in (("--adapter", "a1"), ("--merged", "m1")):
        assert export.main(["runs/lora", "--checkpoint", "1", flag, "--to", folder]) == 0
        torch.testing.assert_close(logits_of_folder(folder), logits_of_run("runs/lora", "1"), rtol=1e-4, atol=1e-4)
    assert Path("a1/adapter_config.json").is_file()
    assert not Path("m1/adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["runs/full", "--adapter"], "trained all weights. There is no adapter."),
        (["runs/none"], "is no run: it has no run.json. An export reads a run directory. runs holds"),
        (["runs/full", "--to", "model"], "holds something. Nothing is overwritten."),
        (["runs/full", "--rollouts", "data.jsonl"], "--rollouts data.jsonl is there. Nothing is overwritten."),
        (["runs/full", "--lm-eval", "model"], "--lm-eval model holds something. Nothing is overwritten."),
        (["runs/full", "--push"], "None is named. Add --hub owner/name."),
        (["runs/full", "--hub", "name"], "Write owner/name."),
        (["runs/lora", "--hub", "me/name"], "the adapter's base is model, a folder of this machine."),
        (["runs/full", "--merged", "--adapter"], "not allowed with"),
    ],
)
def test_what_cannot_be_is_refused(inside: Path, capsys, flags: list[str], says: str) -> None:
    assert export.main(flags) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_base_in_few_bits_is_not_merged_into() -> None:
    config = SimpleNamespace(quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match=r"holds its weights in few bits \(bitsandbytes\)"):
        refuse_quantised(config)


def test_a_failed_export_leaves_nothing(inside: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    assert export.main(["runs/full", "--to", "elsewhere"]) == 3
    assert [p.name for p in inside.iterdir() if "elsewhere" in p.name] == []


# The card


def test_the_card_of_a_model_says_where_it_is_from_what_it_can_and_what_failed(inside: Path) -> None:
    for folder, library in (("runs/full/final", "transformers"), ("runs/lora/final/adapter", "peft")):
        front, body = card_of(folder)
        assert front["library_name"] == library
        assert front["pipeline_tag"] == "text-generation"
        assert front["license"] == "mit", "the base's own, from its front matter"
        assert {"self-distillation", "opsd"} <= set(front["tags"])
        assert "base_model" not in front, "a folder's name is no id of the Hub: hubs refuse such a card"
        run = json.loads(Path("runs", folder.split("/")[1], "run.json").read_text())
        for said in (run["model_sha256"], run["data_sha256"], "seed 0", "- 8 to train on, 4 held out"):
            assert said in body, said
        stored = json.loads(Path("runs", folder.split("/")[1], "eval.json").read_text())
        for arm in stored["arms"]:
            accuracy = arm["accuracy"]
            held = f"{accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}]"
            assert f"| {arm['name']} | {arm['correct']}/{arm['judged']} | {held} |" in body
        assert stored["verdict"]["line"] in body
        rows = read_jsonl(Path("runs", folder.split("/")[1], "rollouts.jsonl"))
        took = json.loads(Path("runs", folder.split("/")[1], "status.json").read_text())["accounts"]["tokens"]
        assert f"tokens generated {sum(took['generated'].values()):,}, read" in body
        cut = sum(r["stop"] == "length" for r in rows if r["step"] == 1) * 2 > 2
        assert ("more than half of the rollouts were cut" in body) or not cut
        assert "python -m workbench.opsd" in body
        assert str(inside) not in body, "paths of this machine stay on it"


def test_hubs_read_the_card(inside: Path) -> None:
    from huggingface_hub import ModelCard

    for folder in ("runs/full/final", "runs/lora/final/adapter"):
        assert ModelCard.load(Path(folder, "README.md")).data.license == "mit"


def test_a_licence_is_what_the_base_states_in_its_front_matter_or_nothing(tmp_path: Path) -> None:
    assert licence_of("smollm2", "anywhere") == "apache-2.0"
    for text, licence in (
        ("---\nlicense: llama3.1\n---\n", "llama3.1"),
        ('---\na: 1\nlicense: "mit"\n---\n', "mit"),
        ("---\na: 1\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence_of("x", str(tmp_path)) == licence, text
    assert licence_of("nobody/has-this", "nobody/has-this") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/home/me/secret/data.jsonl", ".../data.jsonl"),
        ("--problems=/home/me/data.jsonl", "--problems=.../data.jsonl"),
        ("~/deep/model and ../up/two", ".../model and .../two"),
        ("chat template from /opt/x/t.jinja", "chat template from .../t.jinja"),
        ("me/model", "me/model"),
        ("./model", "./model"),
        ("runs/brief/final", "runs/brief/final"),
        ("https://host/a/b", "https://host/a/b"),
    ],
)
def test_paths_of_this_machine_are_cut_and_names_are_not(text: str, said: str) -> None:
    assert shortened(text) == said


# Rollouts


def test_rollouts_load_as_a_data_set_of_plain_types(inside: Path, tmp_path: Path) -> None:
    import datasets

    target = tmp_path / "out.parquet"
    assert export.main(["runs/full", "--rollouts", str(target)]) == 0
    found = datasets.load_dataset("parquet", data_files=str(target), split="train", cache_dir=str(tmp_path))
    rows = read_jsonl(Path("runs/full/rollouts.jsonl"))
    assert len(found) == len(rows) == 4
    for got, row in zip(found, rows, strict=True):
        for name in ("step", "problem", "question", "text", "token_ids", "status", "score", "kept", "stop", "index"):
            assert got[name] == row[name], name
        assert got["sampler_logp"] == pytest.approx(row["sampler_logp"], rel=1e-6)
    assert set(found.column_names) == set(rows[0]) - {"time"}


def test_hostile_text_survives_as_the_rule_says(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    texts = ["a\x00b", "half \ud83d of a pair", "\U0001f600 \u2028 \x1b[2J", "", "é" * 10_000]
    rows = [{"step": i, "text": t, "kept": False, "divergence": None, "score": None} for i, t in enumerate(texts)]
    rows[0] |= {"sampler_logp": [float("nan"), -1.0], "score": float("inf")}
    torn = encode(rows[0])[:20]
    (tmp_path / "rollouts.jsonl").write_text("".join(encode(r) + "\n" for r in rows) + "not json\n[1]\n" + torn)
    assert export.main([str(tmp_path), "--rollouts", str(tmp_path / "o.parquet")]) == 0
    got = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [g["text"] for g in got] == [texts[0], "half \\ud83d of a pair", *texts[2:]]
    assert got[0]["sampler_logp"] == [None, -1.0]
    assert got[0]["score"] is None


def test_no_rollouts_is_said_and_an_old_file_is_kept(inside: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "o.parquet"
    target.write_text("before")
    assert export.main([str(tmp_path), "--rollouts", str(target)]) == 2
    assert "Nothing is overwritten. Name a new file." in capsys.readouterr().err
    assert export.main([str(tmp_path), "--rollouts", str(tmp_path / "new.parquet")]) == 3
    assert "holds no rollouts" in capsys.readouterr().err
    assert target.read_text() == "before"
    assert export.main(["runs/full", "--rollouts", "nowhere/o.parquet"]) == 3
    assert "cannot be written" in capsys.readouterr().err
