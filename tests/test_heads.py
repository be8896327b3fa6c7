"""Temperatures a token, low-rank heads, and what PEFT puts around an output layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as Folder

import pytest
import torch
from torch import Tensor

from tests.conftest import build_tiny
from tests.test_fused import MIXTURES, Ledger, Path, Setting, V, agree, gradients, setting
from workbench.divergence import (
    ALL,
    JSD,
    Divergence,
    ForwardKL,
    Head,
    LowRank,
    Options,
    Part,
    Scored,
    TokenRows,
    fused_loss,
    generic_loss,
    layouts,
    reference_loss,
)
from workbench.engine.heads import decoder, head_of
from workbench.errors import InputError, UsageError

R = 3
HEADS = [
    {},
    {"bias": False},
    {"softcap": 2.0},
    {"scale": 0.6, "softcap": 2.0, "temperature": 1.7},
]
paths = pytest.mark.parametrize("path", [fused_loss, generic_loss])
heads = pytest.mark.parametrize("head", HEADS, ids=str)
every = pytest.mark.parametrize("divergence", ALL, ids=str)


@pytest.fixture(autouse=True)
def one_thread_and_many_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several blocks in a small vocabulary."""
    monkeypatch.setattr(layouts, "CPU_BLOCK", 16 * 7)
    monkeypatch.setattr(layouts, "GPU_BLOCK", V * 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["columns", "rows"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind = {"columns": layouts.Columns, "rows": layouts.Rows}[request.param]
    monkeypatch.setattr(layouts, "layout_for", lambda device: kind)
    return request.param


# A temperature for each token.


def warmed(at: Setting, seed: int = 5) -> Setting:
    generator = torch.Generator().manual_seed(seed)
    temperature = torch.rand(len(at.weight), generator=generator, dtype=torch.float64) * 3 + 0.2
    return replace(at, rows=replace(at.rows, temperature=temperature))


@paths
@heads
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_temperature_for_each_token(mixture: str, head: dict[str, float], path: Path, layout: str) -> None:
    at = warmed(setting(**head))
    agree(at, MIXTURES[mixture](at), Options(chunk=16, entropies=True), path)


@every
def test_every_divergence_at_every_temperature(divergence: Divergence, layout: str) -> None:
    at = warmed(setting(softcap=2.0))
    agree(at, [Part(at.weight, divergence)], Options(chunk=16))


@pytest.mark.parametrize("path", [fused_loss, generic_loss, reference_loss])
def test_one_temperature_for_all_tokens_is_the_heads_own(path: Path, layout: str) -> None:
    at, warm = setting(softcap=2.0), setting(softcap=2.0, temperature=2.5)
    same = replace(at, rows=replace(at.rows, temperature=torch.full_like(at.weight, 2.5)))
    found = []
    for one in (same, warm):
        out = path(one.student, one.teacher, one.rows, MIXTURES["both kinds"](one))
        found.append([out.values, out.stats.student_logp, out.stats.teacher_logp, *gradients(one, out.loss)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


@paths
def test_a_temperature_is_a_constant(path: Path) -> None:
    at = warmed(setting())
    assert at.rows.temperature is not None
    at.rows.temperature.requires_grad_()
    path(at.student, at.teacher, at.rows, [Part(at.weight, JSD())]).loss.backward()
    assert at.rows.temperature.grad is None


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_cannot_divide_are_refused(wrong: float) -> None:
    at = warmed(setting())
    assert at.rows.temperature is not None
    at.rows.temperature[3] = wrong
    for path in (fused_loss, generic_loss):
        with pytest.raises(UsageError, match="not a number > 0"):
            path(at.student, at.teacher, at.rows, [Part(at.weight, JSD())])
    with pytest.raises(UsageError, match="token temperatures"):
        fused_loss(at.student, at.teacher, replace(at.rows, temperature=torch.ones(2)), [Part(at.weight, JSD())])


# A low-rank update of the head.


class Adapted(Setting):
    """A setting whose student's head has factors."""

    def parameters(self) -> list[Tensor]:
        return [x for x in (self.student.hidden, *self.student.head.tensors) if x is not None and x.requires_grad]


def adapted(
    dtype: torch.dtype = torch.float64, factors: torch.dtype | None = None, frozen: tuple[str, ...] = (), **head: object
) -> Adapted:
    """Both roles have an update; the student's trains, but for what is `frozen`."""
    at = setting(dtype=dtype, **head)
    assert at.teacher is not None
    generator = torch.Generator().manual_seed(9)

    def update(role: Scored) -> Scored:
        width = role.hidden.shape[1]
        down, up = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(factors or dtype) * 0.3
            for shape in ((R, width), (V, R))
        )
        return replace(role, head=replace(role.head, low_rank=LowRank(down, up, 1.6)))

    student, teacher = update(at.student), update(at.teacher)
    assert student.head.low_rank is not None
    for x in (student.head.low_rank.down, student.head.low_rank.up):
        x.requires_grad_()
    held = {"hidden": student.hidden, **dict(zip(("weight", "bias", "down", "up"), student.head.tensors, strict=True))}
    for name in frozen:
        held[name].requires_grad_(False)
    return Adapted(student, teacher, at.rows, at.weight)


@paths
@heads
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_low_rank_head(mixture: str, head: dict[str, float], path: Path, layout: str) -> None:
    at = warmed(adapted(**head))
    agree(at, MIXTURES[mixture](at), Options(chunk=16, entropies=True), path)


@paths
@pytest.mark.parametrize(
    "frozen",
    [
        ("weight", "bias"),
        ("weight", "bias", "hidden"),
        ("weight", "bias", "down"),
        ("up",),
        ("hidden", "up"),
        ("down",),
    ],
    ids=str,
)
def test_only_what_trains_gets_a_gradient(frozen: tuple[str, ...], path: Path, layout: str) -> None:
    at = adapted(frozen=frozen)
    assert len(at.parameters()) == 5 - len(frozen)
    agree(at, [Part(at.weight, JSD()), Part(at.weight, ForwardKL())], Options(chunk=16), path)


def test_an_update_is_a_weight_that_is_never_formed(layout: str) -> None:
    at = adapted(frozen=("weight", "bias"))
    low_rank = at.student.head.low_rank
    assert low_rank is not None
    for part in (Part(at.weight, JSD()), Part(at.weight, sampled=lambda stats: stats.advantage)):
        merged = at.student.head.weight + low_rank.scale * low_rank.up @ low_rank.down
        whole = Scored(at.student.hidden, replace(at.student.head, weight=merged, low_rank=None))
        mine, theirs = (fused_loss(s, at.teacher, at.rows, [part], Options(chunk=16)) for s in (at.student, whole))
        torch.testing.assert_close(mine.values, theirs.values, rtol=1e-10, atol=1e-10)
        for a, b in zip(gradients(at, mine.loss), gradients(at, theirs.loss), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_float32_factors_of_a_bfloat16_head(layout: str) -> None:
    """As PEFT keeps them: gradients come back in each one's own type."""
    at = adapted(torch.bfloat16, torch.float32, ("weight",), bias=False)
    at.weight = at.weight.float()
    ours = agree(at, [Part(at.weight, JSD())], Options(chunk=16), rtol=3e-2, atol=3e-2)
    assert ours.loss.dtype == torch.float32
    assert [
        g.dtype for g in gradients(at, fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, JSD())]).loss)
    ] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]


def test_factors_that_do_not_fit_are_refused() -> None:
    at = adapted()
    assert at.teacher is not None
    low_rank = at.student.head.low_rank
    assert low_rank is not None
    wrong = replace(at.student.head, low_rank=LowRank(low_rank.up, low_rank.down))
    with pytest.raises(UsageError, match="student's low-rank update"):
        fused_loss(replace(at.student, head=wrong), at.teacher, at.rows, [Part(at.weight, JSD())])
    other = replace(at.teacher, head=replace(at.teacher.head, low_rank=LowRank(low_rank.down, low_rank.up)))
    with pytest.raises(UsageError, match="teacher's low-rank update"):
        fused_loss(at.student, other, at.rows, [Part(at.weight, JSD())])


def test_an_update_costs_what_its_factors_do(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three large products under a frozen head; the rest is of the rank."""
    monkeypatch.setattr(layouts, "CPU_BLOCK", 4096)
    n, v, h, r = 64, 512, 256, 2
    low_rank = LowRank(torch.randn(r, h).requires_grad_(), torch.randn(v, r).requires_grad_())
    student = Scored(torch.randn(n, h).requires_grad_(), Head(torch.randn(v, h), low_rank=low_rank))
    teacher = Scored(torch.randn(n, h), Head(torch.randn(v, h)))
    rows = TokenRows(torch.randint(0, v, (n,)), torch.arange(n), torch.zeros(n), torch.zeros(n))
    with Ledger() as ledger:
        fused_loss(student, teacher, rows, [Part(torch.ones(n), JSD())])
    assert 3 * n * v * h <= ledger.products <= 3 * n * v * h + 3 * n * v * r + 4 * n * h * r
    assert ledger.peak < 4 * (2 * n * v + v * h)


# PEFT.


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return build_tiny(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


def peft(folder: Folder, **config: object):
    """A float64 model with LoRA on its head too, whose factors are not zero."""
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "lm_head"], "task_type": "CAUSAL_LM", **config}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.3
    return model.eval()


IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def test_lora_on_the_head_is_the_model_s_own_loss_and_gradient(untied: Folder, layout: str) -> None:
    model = peft(untied)
    trained = [p for _, p in model.named_parameters() if p.requires_grad]
    expected = torch.nn.functional.cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
    theirs = torch.autograd.grad(expected, trained)
    states = decoder(model)(input_ids=IDS, use_cache=False).last_hidden_state[0, :-1]
    n = len(states)
    rows = TokenRows(IDS[0, 1:], torch.arange(n), torch.zeros(n), torch.zeros(n))
    part = Part(torch.full((n,), 1 / n).double(), sampled=lambda stats: torch.ones_like(stats.student_logp))
    ours = fused_loss(Scored(states, head_of(model)), None, rows, [part])
    torch.testing.assert_close(ours.loss, expected)
    for mine, its in zip(torch.autograd.grad(ours.loss, trained), theirs, strict=True):
        assert its.abs().max() > 0
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)  # the model's norms are in float32


def logits_agree(model) -> None:
    states = decoder(model)(input_ids=IDS, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(head_of(model).logits(states), model(input_ids=IDS).logits[0])


def test_an_adapter_is_on_off_merged_or_one_of_several(untied: Folder) -> None:
    model = peft(untied)
    assert head_of(model).low_rank is not None
    logits_agree(model)
    with model.disable_adapter():
        assert head_of(model).low_rank is None
        logits_agree(model)
    model.base_model.set_adapter([])
    logits_agree(model)
    model.set_adapter("default")
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        if "second" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.3
    logits_agree(model)
    model.merge_adapter()
    assert head_of(model).low_rank is None
    logits_agree(model)


def test_a_head_trained_whole_beside_an_adapter(untied: Folder) -> None:
    model = peft(untied, target_modules=["q_proj"], modules_to_save=["lm_head"])
    head_of(model).weight.data.mul_(1.5)
    assert head_of(model).weight.requires_grad
    logits_agree(model)
    with model.disable_adapter():
        logits_agree(model)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_dropout": 0.5}], ids=str)
def test_other_adapters_on_the_head_are_refused(untied: Folder, config: dict[str, object]) -> None:
    model = peft(untied, **config).train()
    with pytest.raises(InputError, match="no plain LoRA"):
        head_of(model)


def test_a_moved_teacher_keeps_its_head_after_the_student_s_comes_back(untied: Folder) -> None:
    """The teacher's weight is swapped in while it runs; the head that was asked for stays the teacher's."""
    from workbench.engine.roles import AdapterOff

    model = peft(untied)
    teacher = AdapterOff(model)
    teacher.move(0.5)
    with teacher.module() as module, torch.no_grad():
        expected = module(input_ids=IDS).logits[0]
        states = decoder(module)(input_ids=IDS, use_cache=False).last_hidden_state[0]
        head = head_of(module)
    torch.testing.assert_close(head.logits(states), expected, rtol=1e-6, atol=1e-6)
    assert (head.weight - head_of(model).weight).abs().max() > 0.01
