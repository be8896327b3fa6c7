"""Servers that misbehave in every way we know of: each is noticed, named, and stops the step."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import build_tiny
from tests.serving_double import Double
from tests.test_generators import generate, ours, stir, wanted
from workbench import serve
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.serving import client
from workbench.engine.serving.attaching import attach
from workbench.engine.serving.client import Replica, refuse_public
from workbench.engine.serving.probing import CLOSE, LENGTH, limit_after
from workbench.errors import ServerError, TrainingError, UsageError
from workbench.parts.refresh import LIVE
from workbench.records import Sampling

SAMPLING = Sampling(6)
PYTHON = sys.executable


@pytest.fixture
def served(tiny, tiny_folder, tmp_path):
    """`served(adapter=None, patience=600, **misbehaviour)`: an engine and the double that writes for it."""
    doubles = []

    def make(adapter=None, patience=600.0, sampling=SAMPLING, **misbehaviour):
        double = Double(tiny_folder, **misbehaviour)
        doubles.append(double)
        engine = tiny(adapter=adapter)
        attach(engine, [double.url], tmp_path / "weights", [(sampling, 0)], patience=patience)
        return engine, double

    yield make
    for double in doubles:
        double.close()


@pytest.fixture(scope="module")
def steady(tiny_folder, tmp_path_factory):
    """Mode -> an engine and the double that writes for it: for tests that leave both as they were."""
    found = {}
    for mode in ("raw", "processed"):
        double = Double(tiny_folder, mode=mode)
        engine = Engine(
            load(str(tiny_folder), dtype=torch.float64), adapter=None, refresh=LIVE, settings=EngineSettings()
        )
        attach(engine, [double.url], tmp_path_factory.mktemp("weights"), [(SAMPLING, 0)])
        found[mode] = (engine, double)
    yield found
    for _, double in found.values():
        double.close()


# Weights


def test_an_old_head_under_a_new_body_is_noticed(served) -> None:
    engine, double = served(keep_head=True)
    stir(engine)
    with pytest.raises(TrainingError, match=re.escape(f"{double.url} serves other weights than were sent")):
        engine.serve(1)
    assert double.paused.is_set(), "the replica is left paused"


def test_a_tied_head_is_sent_although_nothing_of_its_name_trains(served, tmp_path) -> None:
    """The trap of real servers, which the double copies: what is not sent stays what it was."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    engine, _ = served()
    assert "lm_head.weight" not in engine.parameters()
    stir(engine)
    engine.serve(1)
    folder = tmp_path / "weights" / "1"
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings is False
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        embedding = engine.parameters()["model.embed_tokens.weight"]
        assert torch.equal(tensors.get_tensor("lm_head.weight"), embedding)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(ids).logits, engine.student(ids).logits)
    assert engine.student.config.tie_word_embeddings is True, "our own model keeps its tie"
    assert [path.name for path in folder.parent.iterdir()] == ["1"], "older versions are gone"


def test_a_reload_that_changes_nothing_is_noticed(served) -> None:
    engine, _ = served(ignore_reload=True)
    stir(engine)
    with pytest.raises(TrainingError, match="serves other weights than were sent"):
        engine.serve(1)


def test_a_prefix_cache_that_outlives_its_weights_is_noticed(served) -> None:
    engine, double = served(keep_cache=True)
    assert double.cache, "the probe is longer than a block"
    stir(engine)
    with pytest.raises(TrainingError, match="serves other weights than were sent"):
        engine.serve(1)


def test_a_short_probe_would_not_see_the_cache(served) -> None:
    """Why the prompt is as long as it is."""
    engine, _ = served(keep_cache=True)
    probe = engine.generators["student"].probe
    assert len(probe.prompt) == LENGTH > 2 * 128
    probe.prompt = probe.prompt[:100]
    stir(engine)
    engine.serve(1)


def test_a_reset_that_says_it_failed_is_believed(served) -> None:
    engine, double = served()
    double.refuse_reset = True
    with pytest.raises(TrainingError, match="kept its prefix cache") as caught:
        engine.serve(1)
    assert double.url in str(caught.value)
    assert double.paused.is_set()
    assert engine.generators["student"].version == 0


def test_the_first_step_is_synchronised_too(served) -> None:
    """A server that was started on other weights serves ours before anybody asks it for a completion."""
    engine, double = served()
    assert len(double.said("/collective_rpc")) == 1
    order = [path.split("?")[0] for path, _ in double.calls]
    steps = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    start = order.index("/pause")
    assert order[start : start + 6] == [*steps, "/inference/v1/generate"]
    assert double.calls[start][0] == "/pause?mode=wait"
    assert engine.generators["student"].gap < 1e-9


def test_one_replica_that_fails_is_named_and_the_other_is_not(tiny, tiny_folder, tmp_path) -> None:
    with Double(tiny_folder) as good, Double(tiny_folder, keep_head=True) as bad:
        engine = tiny()
        attach(engine, [good.url, bad.url], tmp_path, [(SAMPLING, 0)])
        stir(engine)
        with pytest.raises(TrainingError) as caught:
            engine.serve(1)
        assert bad.url in str(caught.value)
        assert good.url not in str(caught.value)
        assert (good.paused.is_set(), bad.paused.is_set()) == (False, True)


def test_float32_has_a_fixed_limit_and_other_types_one_of_their_own(served) -> None:
    engine, double = served()
    probe = engine.generators["student"].probe
    assert probe.limits[double.url] == 1e-3
    engine, double = served(dtype=torch.bfloat16)
    probe = engine.generators["student"].probe
    assert probe.limits[double.url] == 3 * probe.gaps[double.url] > 1e-3


# Adapters


def test_every_version_of_an_adapter_has_a_name_of_its_own(served, tmp_path) -> None:
    engine, double = served(adapter="lora:r=4")
    for version in (1, 2, 3, 4, 4):
        stir(engine, version)
        engine.serve(version)
    names = [body["lora_name"] for body in double.said("/v1/load_lora_adapter")]
    assert len(set(names)) == len(names) == 6
    assert names[3].startswith("policy-3-")
    assert list(double.adapters) == names[-3:], "older ones are unloaded"
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {"3", "4"}
    assert not double.said("/collective_rpc"), "the base never moves"


def test_one_server_is_the_frozen_teacher_and_the_student(served) -> None:
    engine, double = served(adapter="lora:r=4")
    stir(engine)
    engine.serve(1)
    prompt = wanted()[0].prompt
    teacher = engine.generators["teacher"].generate(wanted()[:1], SAMPLING, frozenset())[0]
    logits = engine.head("teacher").logits(engine.score("teacher", [prompt], [teacher.tokens])).log_softmax(-1)
    expected = logits.gather(1, torch.tensor(teacher.tokens)[:, None]).squeeze(1).tolist()
    assert teacher.logprobs == pytest.approx(expected, abs=1e-5)
    student = generate(engine, wanted()[:1], SAMPLING)[0]
    assert student.logprobs == pytest.approx(ours(engine, prompt, student.tokens), abs=1e-5)
    models = [body["model"] for body in double.said("/inference/v1/generate")[-2:]]
    assert models[0] == "policy"
    assert models[1].startswith("policy-1-")
    assert teacher.versions == student.versions == (1, 1)


def test_another_models_answer_is_noticed(served) -> None:
    engine, double = served(adapter="lora:r=4")
    stir(engine)
    engine.serve(1)
    double.other_adapter = True
    with pytest.raises(ServerError, match="answered with model 'policy-0-"):
        generate(engine, wanted(), SAMPLING)


def test_another_base_is_noticed(tiny, tmp_path) -> None:
    from tests.conftest import build_tiny

    with Double(build_tiny(tmp_path / "other", seed=5)) as double, pytest.raises(TrainingError, match="other weights"):
        attach(tiny(adapter="lora:r=4"), [double.url], tmp_path / "weights", [(SAMPLING, 0)])


# Completions


def test_completions_of_two_versions_are_noticed(served) -> None:
    engine, double = served()
    engine.serve(1)
    double.mix = True
    with pytest.raises(ServerError, match=r"wrote with weights 0-\w+, 1-\w+, where 1-\w+ were sent"):
        generate(engine, wanted(), SAMPLING)


def test_weights_of_somebody_else_are_noticed(served) -> None:
    engine, double = served()
    double.label = "0"  # the same number, from another run
    with pytest.raises(ServerError, match="Somebody else sends weights too"):
        generate(engine, wanted(), SAMPLING)


CONTENT = [{"token_id": 1, "logprob": -1.0}] * 6


@pytest.mark.parametrize(
    ("misbehaviour", "message"),
    [
        ({"wrong_length": True}, "6 tokens with 5 log-probs"),
        ({"garbage": "<html>"}, "answered no JSON. It begins '<html>'"),
        ({"garbage": "[" * 100_000}, "answered no JSON"),
        ({"garbage": "null"}, "cannot be a completion: TypeError"),
        ({"garbage": '{"choices": []}'}, "cannot be a completion"),
        ({"spoil": {"token_ids": None}}, "cannot be a completion: TypeError"),
        ({"spoil": {"token_ids": []}}, "0 tokens where 1 to 6 were asked for"),
        ({"spoil": {"token_ids": [1] * 7}}, "7 tokens where 1 to 6 were asked for"),
        ({"spoil": {"token_ids": [10**6] * 6}}, "a token outside the vocabulary"),
        ({"spoil": {"token_ids": [True] * 6}}, "a token outside the vocabulary"),
        ({"spoil": {"token_ids": [2] * 6}}, "log-probs of other tokens"),
        ({"spoil": {"token_ids": [1] * 6, "logprobs": {"content": [{"token_id": 1, "logprob": 0.5}] * 6}}}, "none"),
        ({"spoil": {"token_ids": [1] * 6, "logprobs": {"content": [{"token_id": 1, "logprob": -9999.0}] * 6}}}, "none"),
        ({"spoil": {"token_ids": [1] * 3, "logprobs": {"content": CONTENT[:3]}}}, "3 of 6 tokens and no end"),
        ({"spoil": {"weight_versions": None}}, "does not say which weights wrote"),
        ({"spoil": {"weight_versions": [{"version": "0", "start": 0, "end": 2}]}}, "weight versions of another length"),
        ({"forbid": ("/inference/v1/generate",)}, "answered 403.*Start it with --enable-scale-out"),
        ({"die_after": 0}, "cannot be reached.*The server is gone"),
    ],
)
def test_what_cannot_be_a_completion_is_an_error_that_names_the_server(
    steady, monkeypatch, misbehaviour, message
) -> None:
    engine, double = steady["raw"]
    for name, value in misbehaviour.items():
        monkeypatch.setattr(double, name, value)
    with pytest.raises(ServerError, match=message) as caught:
        generate(engine, wanted(), SAMPLING)
    assert double.url in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_server_that_hangs_is_given_up(served) -> None:
    engine, double = served()
    (replica,) = engine.generators["student"].fleet.replicas
    replica.patience, double.hang, start = 0.3, True, time.monotonic()
    with pytest.raises(ServerError, match=r"said nothing for 0.3 s"):
        generate(engine, wanted(), SAMPLING)
    assert time.monotonic() - start < 30


def test_a_replica_that_dies_midway_cuts_off_the_others(tiny, tiny_folder, tmp_path) -> None:
    with Double(tiny_folder) as good, Double(tiny_folder) as bad:
        engine = tiny()
        attach(engine, [good.url, bad.url], tmp_path, [(SAMPLING, 0)])
        bad.die_after = bad.written + 1
        with pytest.raises(ServerError, match=re.escape(bad.url)):
            generate(engine, wanted([(i, 9) for i in range(8)]), SAMPLING)


# What log-probs mean


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_the_mode_is_found_out_and_not_believed(steady, mode) -> None:
    assert steady[mode][0].generators["student"].mode == mode


@pytest.mark.parametrize(
    ("sampling", "mode", "message"),
    [
        (Sampling(6, temperature=0.5), "raw", "Start it with --logprobs-mode processed_logprobs"),
        (Sampling(6, top_p=0.9), "processed", "Start it with --logprobs-mode raw_logprobs"),
        (Sampling(6, top_k=20), "processed", "Start it with --logprobs-mode raw_logprobs"),
        (Sampling(6, temperature=0.5, top_p=0.9), "raw", "no vLLM server says"),
        (Sampling(6, temperature=0.5, top_p=0.9), "processed", "no vLLM server says"),
    ],
)
def test_log_probs_of_another_distribution_are_refused(steady, sampling, mode, message) -> None:
    with pytest.raises(UsageError, match=message):
        generate(steady[mode][0], wanted(), sampling)


def test_they_are_refused_before_step_1(served) -> None:
    with pytest.raises(UsageError, match="Start it with --logprobs-mode processed_logprobs"):
        served(sampling=Sampling(6, temperature=0.5))


def test_a_temperature_is_in_the_log_probs(steady) -> None:
    engine, _ = steady["processed"]
    for sample, asked in zip(generate(engine, wanted(), Sampling(6, temperature=0.5)), wanted(), strict=True):
        assert sample.logprobs == pytest.approx(ours(engine, asked.prompt, sample.tokens, 0.5), abs=1e-6)


def test_a_completion_that_would_be_cut_is_refused(steady) -> None:
    with pytest.raises(UsageError, match="Start it with --max-model-len 5006"):
        generate(steady["raw"][0], wanted([tuple([5] * 5000)]), SAMPLING)


# Addresses


@pytest.mark.parametrize("url", ["http://8.8.8.8:8911", "http://[2001:4860:4860::8888]:1", "https://1.1.1.1"])
def test_a_public_address_is_refused_with_the_reason(url: str) -> None:
    with pytest.raises(UsageError, match="weight, pause and rpc routes ask for no key"):
        refuse_public(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "http://10.1.2.3:1", "http://[::1]:1"])
def test_a_private_address_is_fine(url: str) -> None:
    refuse_public(url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:1", "ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h?q"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no server's address"):
        client.parsed(url)


def test_replicas_are_distinct_and_of_one_model(tiny, tiny_folder, tmp_path) -> None:
    with Double(tiny_folder) as double, pytest.raises(UsageError, match="one address twice"):
        attach(tiny(), [double.url, double.url + "/v1"], tmp_path, [(SAMPLING, 0)])
    with pytest.raises(UsageError, match="make serve"):
        attach(tiny(), [], tmp_path, [(SAMPLING, 0)])


def test_a_key_is_sent_and_in_no_message(tiny_folder) -> None:
    with Double(tiny_folder, forbid=("/version",)) as double:
        replica = Replica(double.url, key="s3cret")
        with pytest.raises(ServerError) as caught:
            replica.get("/version")
        assert "s3cret" not in str(caught.value)
        assert double.keys == ["Bearer s3cret"]


def test_what_no_server_says_is_recorded(tiny, tiny_folder, tmp_path) -> None:
    with Double(tiny_folder) as double:
        facts = attach(tiny(), [double.url], tmp_path, [(SAMPLING, 0)])
        assert facts["servers"] == [{"url": double.url, "version": "0.32.0", "model": "policy"}]
        assert facts["logprobs_mode"] == "raw"


# The command that starts one


def test_a_server_is_started_the_way_we_need_it(tmp_path, capsys) -> None:
    asked = serve.arguments().parse_args(["--adapter", "lora:r=12", "--logprobs", "processed", "--port", "9"])
    line, variables = serve.command(asked, tmp_path), serve.environment(asked)
    for words in ("--enable-scale-out", "--max-lora-rank 16", "--logprobs-mode processed_logprobs", "--host 127.0.0.1"):
        assert words in " ".join(line)
    assert variables["VLLM_SERVER_DEV_MODE"] == variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert serve.main(["--python", str(tmp_path / "none")]) == 2
    assert "make serve" in capsys.readouterr().err
    assert serve.main(["--host", "8.8.8.8"]) == 2
    assert "public address" in capsys.readouterr().err


def test_what_it_starts_on_is_complete_and_untied(tiny_folder, tmp_path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    asked = serve.arguments().parse_args(
        ["--model", str(tiny_folder), "--folder", str(tmp_path / "m"), "--python", PYTHON]
    )
    folder = serve.prepared(asked)
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings is False
    assert AutoTokenizer.from_pretrained(folder).chat_template
    ids = torch.tensor([[5, 6, 7]])
    ours_, theirs = (AutoModelForCausalLM.from_pretrained(f)(ids).logits for f in (tiny_folder, folder))
    assert torch.equal(ours_, theirs)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_does_not_listen_to_everybody(host: str, tmp_path: Path) -> None:
    asked = serve.arguments().parse_args(["--host", host, "--folder", str(tmp_path)])
    with pytest.raises(UsageError, match=r"no server's address|every address"):
        serve.prepared(asked)


def test_a_run_that_goes_on_is_measured_by_its_first_difference(tiny_folder, tmp_path, tiny) -> None:
    """Bug: a server that holds an old head is its own ruler when a run begins again."""
    other = build_tiny(tmp_path / "other", seed=5)
    with Double(other, ignore_reload=True) as double, pytest.raises(ServerError, match="other weights than were sent"):
        attach(tiny(), [double.url], tmp_path / "weights", [(SAMPLING, 0)], first_gap=1e-5)
    assert limit_after(0.02) == pytest.approx(0.06)
    assert limit_after(1e-5) == CLOSE


def test_what_does_not_fit_a_server_is_refused_before_step_1(tiny_folder, tmp_path, tiny) -> None:
    with Double(tiny_folder, limit=1024) as double, pytest.raises(UsageError, match="--max-model-len"):
        attach(tiny(), [double.url], tmp_path, [(SAMPLING, 0), (SAMPLING, 1024)])
