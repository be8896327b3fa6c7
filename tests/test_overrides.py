"""`--set path=value`: typed by the part that stands there, never evaluated, and checked like a literal recipe."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from workbench.divergence import JSD, EntryClipped, ForwardKL, ReverseKL
from workbench.errors import RecipeError, UsageError
from workbench.overrides import apply_set, choose, vocabulary
from workbench.parts.advantages import GroupCentred
from workbench.parts.contexts import concise_percent, with_answer, with_solution
from workbench.parts.gates import Consensus, Correct
from workbench.parts.refresh import LIVE, ema, every
from workbench.parts.schedules import Linear
from workbench.parts.terms import CrossEntropy, Distill, by_student
from workbench.parts.writers import ByTeacher, OnPolicy, Together
from workbench.recipe import Recipe
from workbench.recipes import ALL
from workbench.records import Refresh, Sampling

BASE = Recipe(name="base", paper="-", teacher=with_solution, terms=(Distill(JSD(teacher_weight=0.5)),))


def changed(**parts: object) -> Recipe:
    return replace(BASE, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch=8", changed(batch=8)),
        ("name=mine", changed(name="mine")),
        ("adapter=lora:r=4,alpha=8", changed(adapter="lora:r=4,alpha=8")),
        ("adapter=None", BASE),
        ("reduction=sequence", changed(reduction="sequence")),
        ("optimizer.lr=1e-3", changed(optimizer=replace(BASE.optimizer, lr=1e-3))),
        ("optimizer.lr=0", changed(optimizer=replace(BASE.optimizer, lr=0.0))),
        ("optimizer.lr=Linear(1e-3, 0)", changed(optimizer=replace(BASE.optimizer, lr=Linear(1e-3, 0)))),
        ("optimizer.max_grad_norm=inf", changed(optimizer=replace(BASE.optimizer, max_grad_norm=math.inf))),
        ("sampling.top_k=20", changed(sampling=Sampling(top_k=20))),
        ("sampling=Sampling(max_new_tokens=3, top_p=0.5)", changed(sampling=Sampling(max_new_tokens=3, top_p=0.5))),
        ("terms.0.divergence.teacher_weight=0.3", changed(terms=(Distill(JSD(0.3)),))),
        ("terms.0.divergence=JSD(teacher_weight=0.3)", changed(terms=(Distill(JSD(0.3)),))),
        ("terms.0.divergence=ReverseKL()", changed(terms=(Distill(ReverseKL()),))),
        ("terms.0.divergence=ReverseKL", changed(terms=(Distill(ReverseKL()),))),
        (
            "terms.0.divergence=EntryClipped(ForwardKL(), ceiling=0.1)",
            changed(terms=(Distill(EntryClipped(ForwardKL(), ceiling=0.1)),)),
        ),
        ("terms.0.coef=-2", changed(terms=(replace(BASE.terms[0], coef=-2.0),))),
        ("terms.0.where=by_student", changed(terms=(replace(BASE.terms[0], where=by_student),))),
        ("terms.0=CrossEntropy()", changed(terms=(CrossEntropy(),))),
        (
            "terms=(Distill(ForwardKL()), CrossEntropy(coef=0.1))",
            changed(terms=(Distill(ForwardKL()), CrossEntropy(0.1))),
        ),
        ("teacher=with_answer", changed(teacher=with_answer)),
        ("teacher=concise_percent(20)", changed(teacher=concise_percent(20))),
        ("refresh=Refresh(every=50,rate=1.0)", changed(refresh=Refresh(50, 1.0))),
        ("refresh=LIVE", changed(refresh=LIVE)),
        ("refresh=every(7)", changed(refresh=every(7))),
        ("refresh=ema(0.9)", changed(refresh=ema(0.9))),
        ("refresh.every=3", changed(refresh=Refresh(3, 0.0))),
        ("rollouts.per_problem=4", changed(rollouts=OnPolicy(4))),
        ("rollouts=ByTeacher(per_problem=8)", changed(rollouts=ByTeacher(8))),
        (
            "rollouts=Together((ByTeacher(2), OnPolicy(2)))",
            changed(rollouts=Together((ByTeacher(2), OnPolicy(2)))),
        ),
        ("gates=(Correct(), Consensus(votes=3))", changed(gates=(Correct(), Consensus(votes=3)))),
        ("gates=[Correct]", changed(gates=(Correct(),))),
        ("gates=()", BASE),
        ("advantage=GroupCentred(normalised=True)", changed(advantage=GroupCentred(normalised=True))),
        ("advantage.normalised=true", changed(advantage=GroupCentred(normalised=True))),
        ("curriculum = Shuffled()", BASE),
    ],
)
def test_one_part_is_changed(text, expected):
    assert apply_set(BASE, text.replace("curriculum =", "curriculum=")) == expected


def test_a_part_without_fields_is_set_as_a_whole():
    with pytest.raises(
        UsageError, match=r"ForwardKL\(\) has no parts, so 'weight' is not one\. Set it as a whole\."
    ) as e:
        choose("opsd", ["terms.0.divergence=ForwardKL()", "terms.0.divergence.weight=1"])
    assert "Valid" not in str(e.value)


def test_settings_apply_in_order():
    recipe = choose("opsd", ["terms.0.divergence=JSD()", "terms.0.divergence.teacher_weight=0.1", "batch=2"])
    assert recipe.terms[0] == replace(ALL["opsd"].terms[0], divergence=JSD(0.1))  # type: ignore[type-var, call-arg]
    assert recipe.batch == 2
    assert choose("opsd") is ALL["opsd"]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("batch", ["path=value", "--set optimizer.lr=1e-5"]),
        ("=3", ["path=value"]),
        ("bach=3", ["no field 'bach' in Recipe", "Did you mean 'batch'?", "Valid: adapter, advantage, "]),
        ("terms.0.divergance=JSD()", ["no field 'divergance' in Distill", "Did you mean 'divergence'?"]),
        ("terms.1.coef=2", ["no entry '1'", "Valid: 0."]),
        ("terms.x.coef=2", ["no entry 'x'"]),
        ("gates.0.votes=2", ["no entry '0'", "none, it is empty"]),
        ("batch.size=2", ["32 has no parts"]),
        ("teacher.template=x", ["with_solution has no parts", "as a whole"]),
        ("batch=many", ["nothing is called 'many'"]),
        ("batch=2.5", ["It takes a whole number."]),
        ("batch=true", ["It takes a whole number."]),
        ("optimizer.lr='1'", ["It takes a number or "]),
        ("reduction=tokens", ["Did you mean 'token'?", "Valid: limit, sequence, sum, token"]),
        ("teacher=with_solutoin", ["Did you mean 'with_solution'?"]),
        ("terms.0.divergence=ReversedKL()", ["Did you mean 'ReverseKL'?", "JSD"]),
        ("terms.0.divergence=Correct()", ["is not what belongs there", "ForwardKL"]),
        ("terms.0=by_student", ["is not what belongs there", "CrossEntropy"]),
        ("gates=(CrossEntropy(),)", ["is not what belongs there", "Consensus"]),
        ("gates=Correct()", ["a list, such as ("]),
        ("refresh=FROZEN()", ["'FROZEN' takes no arguments"]),
        ("terms.0.coef=1 if 1 else 2", ["is no value"]),
        ("terms.0.coef=(", ["cannot read '('"]),
        ("terms.0.coef=", ["cannot read ''"]),
    ],
)
def test_what_cannot_be_meant_is_answered(text, phrases):
    with pytest.raises(UsageError) as caught:
        apply_set(BASE, text)
    assert "--set" in str(caught.value)
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "teacher=None",
        "terms=()",
        "optimizer.lr=7",
        "sampling.temperature=0",
        "rollouts.per_problem=0",
        "terms.0.divergence.teacher_weight=2",
        "refresh.rate=2",
        "terms.0.divergence=JSD(weight=0.1)",
        "terms.0.divergence=JSD(0.1, 0.2)",
        "rollouts=Mixture(student=0.5)",
    ],
)
def test_what_is_illegal_in_a_recipe_is_illegal_here(text):
    with pytest.raises(UsageError, match=re.escape(f"--set {text}: ")):
        apply_set(BASE, text)
    assert issubclass(RecipeError, UsageError)


@pytest.mark.parametrize(
    "text",
    [
        "batch=__import__('os').getpid()",
        "batch=().__class__",
        "batch=[i for i in (1,)]",
        "batch=open('x')",
        "batch=print",
        "terms.0.divergence=JSD(**{'teacher_weight': 0.1})",
        "terms.0.divergence=JSD(*[0.1])",
        "batch=" + "(" * 500,
        "batch=" + "-" * 5000 + "1",
        "__class__=1",
        "optimizer.__init__=1",
    ],
)
def test_text_is_parsed_never_evaluated(text):
    with pytest.raises(UsageError):
        apply_set(BASE, text)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no recipe 'opsdk'\. Did you mean 'opsd'\?"):
        choose("opsdk")


def test_every_part_with_defaults_can_be_named():
    for name in (
        "ForwardKL",
        "TotalVariation",
        "Jeffreys",
        "Consensus",
        "Correct",
        "FROZEN",
        "Shuffled",
        "TopK",
        "Cosine",
    ):
        assert name in vocabulary()
    assert not [name for name in vocabulary() if name.startswith("_")]


@pytest.mark.parametrize("name", sorted(ALL))
def test_what_a_recipe_prints_can_be_set(name):
    """Every part of the catalogue where it stands: terms, writers, plans of any module, schedules inside them."""
    recipe = ALL[name]
    for part in ("terms", "rollouts", "gates", "plans", "curriculum", "advantage", "token_weight", "refresh"):
        assert apply_set(recipe, f"{part}={getattr(recipe, part)!r}") == recipe
    assert apply_set(recipe, f"sampling={recipe.sampling!r}") == recipe
    assert apply_set(recipe, f"optimizer={recipe.optimizer!r}") == recipe
