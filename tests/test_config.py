"""Where a setting comes from: defaults < stored run < files < flags, and what a wrong one is told."""

from __future__ import annotations

import ast
import dataclasses
import json
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cli import parse
from workbench.config import HINTS, THIS_TIME_ONLY, Adapter, RunConfig, as_dict, flag, parse_adapter
from workbench.config_files import build, merge, read_layer, to_toml
from workbench.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t != "None")
COUNT = st.integers(1, 10**9)
SHARE = st.floats(1e-6, 1.0)
SPECIAL: dict[str, st.SearchStrategy] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    "adapter": st.sampled_from(["none", "lora", "lora:r=4", "lora:r=4,alpha=9", "lora:alpha=1"]),
    "columns": st.lists(st.sampled_from(["problem=q", "solution=a b"]), min_size=1).map(tuple),
    "require": st.lists(st.sampled_from(["solution", "document"]), min_size=1).map(tuple),
    "stages": st.lists(st.sampled_from(["sft:2", "opsd:3:plateau"]), min_size=1).map(tuple),
    "set": st.lists(st.sampled_from(["optimizer.lr=1", "terms.0.coef=-2"]), min_size=1).map(tuple),
    "fresh": st.just(False),
    "fork": st.none(),
    "resume": st.just(False),
}


def values(name: str) -> st.SearchStrategy:
    """Legal values of a field, the default among them."""
    if name in SPECIAL:
        return SPECIAL[name]
    hint = next(h for h in (typing.get_args(HINTS[name]) or (HINTS[name],)) if h is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(HINTS[name]) is typing.Literal:
        return st.sampled_from(typing.get_args(HINTS[name]))
    return {int: COUNT, float: SHARE, bool: st.booleans(), str: TEXT}[hint]


LAYER = st.lists(st.sampled_from(sorted(HINTS)), unique=True, max_size=8).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)
CONFIG = LAYER.map(lambda layer: RunConfig(**layer))


def as_flags(layer: dict) -> list[str]:
    tokens: list[str] = []
    for name, value in layer.items():
        if isinstance(value, bool):
            tokens.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        elif isinstance(value, tuple):
            tokens += [flag(name), *value]
        elif value is not None:
            tokens.append(f"{flag(name)}={value}")
    return tokens


def as_file(folder: Path, name: str, layer: dict) -> Path:
    path = folder / name
    kept = {key: list(v) if isinstance(v, tuple) else v for key, v in layer.items() if v is not None}
    config = dataclasses.replace(RunConfig(), **{k: v for k, v in layer.items() if v is not None})
    lines = [line for line in to_toml(config).split("\n") if line.split(" = ")[0] in kept]
    path.write_text(json.dumps(kept) if name.endswith("json") else "\n".join(lines), encoding="utf-8")
    return path


@settings(deadline=None)
@given(first=LAYER, second=LAYER, flags=LAYER)
def test_the_last_layer_that_says_a_field_wins(tmp_path_factory, first, second, flags):
    folder = tmp_path_factory.mktemp("layers")
    files = [as_file(folder, "a.toml", first), as_file(folder, "b.json", second)]
    config = parse(["--config", *map(str, files), *as_flags(flags)])
    for name in HINTS:
        said = [layer[name] for layer in (first, second, flags) if layer.get(name) is not None]
        assert getattr(config, name) == (said[-1] if said else getattr(RunConfig(), name)), name


def test_a_flag_equal_to_the_default_still_wins(tmp_path):
    (tmp_path / "a.toml").write_text("steps = 99\nresume = false\ndebug = true\nlr = 0.5\n")
    default = RunConfig()
    config = parse(["--config", str(tmp_path / "a.toml"), "--steps", str(default.steps), "--no-debug", "--lr", "None"])
    assert config == default


@settings(deadline=None)
@given(config=CONFIG)
def test_a_configuration_reads_back_from_toml(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("toml") / "a.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert build(read_layer(path)) == config


@settings(deadline=None)
@given(config=CONFIG)
def test_a_run_can_be_given_back_without_what_one_start_asked_for(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("run") / "run.json"
    path.write_text(json.dumps({"command": "x", "config": as_dict(config), "seeds": [1]}))
    fresh = {name: getattr(RunConfig(), name) for name in THIS_TIME_ONLY}
    assert parse(["--config", str(path)]) == dataclasses.replace(config, **fresh)


def test_resuming_starts_from_the_stored_configuration(tmp_path):
    stored = RunConfig(steps=7, lr=0.25, recipe="opsdc", name="a", output="elsewhere", fork="runs/b", debug=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(json.dumps({"config": as_dict(stored)}))
    config = parse(["--resume", "--name", "a", "--output", str(tmp_path), "--steps", "8"])
    assert config == RunConfig(
        steps=8, lr=0.25, recipe="opsdc", name="a", output=str(tmp_path), fork="runs/b", resume=True
    )


def test_a_run_to_resume_has_to_exist(tmp_path):
    with pytest.raises(UsageError, match=r"needs --name.*There is none yet"):
        parse(["--resume", "--output", str(tmp_path)])
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "run.json").write_text('{"config": {}}')
    with pytest.raises(UsageError, match=r"The newest is .*--resume --name long"):
        parse(["--resume", "--output", str(tmp_path)])
    with pytest.raises(UsageError, match=r"no run .*lang to resume.*Did you mean 'long'"):
        parse(["--resume", "--name", "lang", "--output", str(tmp_path)])


def test_lists_replace_and_tables_merge(tmp_path):
    (tmp_path / "a.toml").write_text('require = ["solution"]\n[set]\n"optimizer.lr" = 0.1\nterms.0.coef = 2\n')
    (tmp_path / "b.toml").write_text('require = ["document"]\n[set]\nterms.0.coef = 3\n[columns]\nproblem = "q"\n')
    config = build(merge([read_layer(tmp_path / "a.toml"), read_layer(tmp_path / "b.toml")]))
    assert config.require == ("document",)
    assert config.set == ("optimizer.lr=0.1", "terms.0.coef=3")
    assert config.columns == ("problem=q",)


@pytest.mark.parametrize(
    ("file", "text", "phrases"),
    [
        (
            "a.toml",
            "stepz = 3",
            ["a.toml: no key 'stepz'", "Did you mean 'steps'?", "Valid: activation_checkpointing, "],
        ),
        ("a.json", '{"model_nam": "x"}', ["no key 'model_nam'", "Did you mean 'model'?"]),
        ("a.toml", "learning-rate = 1", ["no key 'learning-rate' in files", "It is called 'lr'"]),
        ("a.toml", "max-new-tokens = 1", ["It is called 'max_new_tokens'"]),
        ("a.toml", 'steps = "3"', ['a.toml: steps = "3" does not fit. It takes a whole number.']),
        ("a.toml", "steps = 3.0", ["It takes a whole number"]),
        ("a.toml", "steps = true", ["It takes a whole number"]),
        ("a.toml", "lr = true", ["It takes a number"]),
        ("a.toml", "debug = 1", ["It takes true or false"]),
        ("a.toml", 'device = "cuba"', ["It takes one of auto, cpu, cuda, mps"]),
        ("a.toml", 'set = "a=1"', ["It takes a list of texts"]),
        ("a.toml", "require = [1]", ["It takes a list of texts"]),
        ("a.json", '{"keep": null}', ["It takes a whole number"]),
        ("a.toml", "steps: 3", ["a.toml is not TOML", "line 1"]),
        ("a.json", "{", ["a.json is not JSON", "line 1"]),
        ("a.json", "[1]", ["holds no table of settings"]),
        ("a.json", '{"config": {"stepz": 1}}', ["no key 'stepz'"]),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path, file, text, phrases):
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        parse(["--config", str(path)])
    for phrase in phrases:
        assert phrase.replace("a.toml", str(tmp_path / "a.toml")).replace("a.json is", f"{path} is") in str(
            caught.value
        )


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        parse(["--config", str(tmp_path / "none.toml")])
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(UsageError, match="not UTF-8"):
        parse(["--config", str(tmp_path / "latin.toml")])


def test_yaml_is_refused_with_the_same_content_as_toml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-5\nresume: no\ndebug: yes\nsteps: 8\nmodel: a: b\n")
    with pytest.raises(UsageError, match="is YAML"):
        read_layer(path)
    path.write_text(
        "learning-rate: 1e-5\nresume: no\ndebug: yes\nsteps: 8\nmodel: 'C:\\x'\nrequire: [solution]\n"
        "set:\n  optimizer:\n    lr: 2\nnmae: x\nlimit: many\n"
    )
    with pytest.raises(UsageError) as caught:
        read_layer(path)
    head, *lines = str(caught.value).splitlines()
    assert "1e-5 is text and no is false" in head
    assert lines[-2].startswith("# no key 'nmae': Did you mean 'name'?")
    assert lines[-1] == 'limit = "many"'
    (tmp_path / "a.toml").write_text("\n".join(lines[:-1]))
    assert build(read_layer(tmp_path / "a.toml")) == RunConfig(
        lr=1e-5, debug=True, steps=8, model="C:\\x", require=("solution",), set=("optimizer.lr=2",)
    )


@pytest.mark.parametrize(
    ("field", "value", "phrase"),
    [
        ("steps", -1, "--steps -1 is out of range"),
        ("batch", 0, "--batch 0 is out of range. It is a whole number from 1 on."),
        ("lr", float("nan"), "--lr nan"),
        ("lr", 1.5, "papers here use"),
        ("top_p", 0.0, "1 cuts nothing"),
        ("temperature", 0.0, "a positive number"),
        ("seed", 2**63, "--seed"),
        ("minutes", float("inf"), "--minutes"),
        ("device", "cuba", "Did you mean 'cuda'?"),
        ("name", "a/b", "Try --name a-b"),
        ("name", "..", "Try --name run-1"),
        ("name", "-x", "Try --name x"),
        ("name", "a\x1b[2J", "Try --name a-2J"),
        ("adapter", "lora:q=1", "Write --adapter lora:r=16,alpha=32"),
        ("adapter", "lora:", "is no adapter"),
        ("adapter", "lora:r=0", "is no adapter"),
        ("adapter", "lora:r=4,r=", "is no adapter"),
        ("adapter", "dora", "is no adapter"),
    ],
)
def test_a_value_out_of_range(field, value, phrase):
    with pytest.raises(UsageError) as caught:
        RunConfig(**{field: value})
    assert phrase in str(caught.value)


def test_an_infinite_gradient_norm_clips_nothing():
    assert RunConfig(max_grad_norm=float("inf")).max_grad_norm == float("inf")


def test_contradictions_are_refused():
    for pair in ({"resume": True, "fresh": True}, {"fresh": True, "fork": "x"}):
        with pytest.raises(UsageError, match="contradict each other"):
            RunConfig(**pair)
    with pytest.raises(UsageError, match="contradict each other"):
        parse(["--resume", "--name", "a", "--fork", "x"])
    assert RunConfig(resume=True, fork="x").fork == "x", "what a run was forked from is still true when it is resumed"


@pytest.mark.parametrize(
    ("text", "adapter"),
    [
        ("none", None),
        ("lora", Adapter(16, 32)),
        ("lora:r=4", Adapter(4, 8)),
        ("lora:r=4,alpha=9", Adapter(4, 9)),
        ("lora:alpha=9", Adapter(16, 9)),
    ],
)
def test_adapters(text, adapter):
    assert parse_adapter(text) == adapter


def reads(node: ast.AST) -> set[str]:
    """Fields that a node reads: attributes of something called `config`, and names handed to a call beside it."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1].endswith("config"):
        return {node.attr}
    if isinstance(node, ast.Call) and any(ast.unparse(arg) == "config" for arg in node.args):
        return {str(n.value) for arg in node.args for n in ast.walk(arg) if isinstance(n, ast.Constant)}
    return set()


def test_every_field_is_read_outside_the_parser():
    """A flag that nothing reads is a lie."""
    parsers = {"cli.py", "config.py", "config_files.py"}
    sources = [path for path in (ROOT / "workbench").rglob("*.py") if path.name not in parsers]
    read = {name for path in sources for node in ast.walk(ast.parse(path.read_text())) for name in reads(node)}
    assert set(HINTS) <= read, f"nothing reads {sorted(set(HINTS) - read)}"
