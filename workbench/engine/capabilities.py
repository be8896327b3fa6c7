"""What a recipe asks of its teacher, what a teacher gives, and the refusal before step 1 where they do not meet.

| a teacher | gives |
|---|---|
| another model | everything |
| a vLLM server | `logp`, `top_k` of any completion, at temperature 1, `named` where it can; `text` |
| an OpenAI-compatible server | `text` |
| a cache of hidden states | all but `write` of those in it; `text` if the teacher wrote them |
| a cache of the likeliest entries | the same without `named` and `logits`; taken over from DistillKit, `top_k` alone |
| texts | `text` |
"""

from __future__ import annotations

from typing import Protocol, get_args

import torch

from workbench.divergence.pair import Divergence
from workbench.divergence.sparse import counts
from workbench.errors import RecipeError, UsageError
from workbench.parts.refresh import EXTERNAL, FROZEN
from workbench.parts.terms import Term, on_support
from workbench.parts.weights import reads_entropies
from workbench.recipe import Recipe
from workbench.records import Capability

EVERYTHING: frozenset[Capability] = frozenset(get_args(Capability))
WORDS: dict[Capability, str] = {
    "text": "texts the teacher wrote",
    "write": "a teacher that writes while we watch",
    "logp": "log-probs of given tokens",
    "entropies": "entropies of its distributions",
    "top_k": "its likeliest tokens with their log-probs",
    "named": "log-probs of the student's likeliest tokens, which we name",
    "logits": "its whole distributions",
}


class Gives(Protocol):
    """A teacher, as far as it matters here."""

    @property
    def source(self) -> str:
        """What --teacher said."""
        ...

    @property
    def kind(self) -> str:
        """In words: `another model`, `a cache of hidden states`."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it gives."""
        ...

    @property
    def entries(self) -> int | None:
        """How many entries of a distribution it knows; None: all."""
        ...

    @property
    def named(self) -> int | None:
        """How many entries a token can be named to it; None: it gives all, or its own alone."""
        ...

    @property
    def unnamed(self) -> str:
        """Why none can be named to it; empty where it was not asked."""
        ...

    @property
    def recorded(self) -> bool:
        """Whether no model of it runs here: it is asked for what it says, or looked up."""
        ...

    @property
    def anew(self) -> bool:
        """Whether it answers for completions that nobody recorded."""
        ...


def needed(recipe: Recipe) -> dict[Capability, str]:
    """What a recipe asks of its teacher, and which part of it asks."""
    asked: dict[Capability, str] = {}
    terms, support = on_support(recipe.terms)
    for term in terms:
        name, looks = type(term).__name__, _looks_at(term)
        if {"teacher", "teacher_logp"} & term.needs:
            ours = looks == "top_k" and support is not None and support.support != "teacher"
            asked.setdefault("named" if ours else looks, name)
        if "behaviour" in term.needs and "teacher" in term.where.authors & recipe.rollouts.authors:
            asked.setdefault("write", name)
    for plan in recipe.plans:
        asked.setdefault("logits" if plan.measures else "logp", type(plan).__name__)
    if reader := _reads_entropies(recipe):
        asked.setdefault("entropies", reader)
    if recipe.rollouts.mixes:
        asked.setdefault("write", type(recipe.rollouts).__name__)
    if "teacher" in recipe.rollouts.authors:
        asked.setdefault("text", type(recipe.rollouts).__name__)
    return asked


def _reads_entropies(recipe: Recipe) -> str:
    """Which parts read them; empty where none does."""
    gates = (recipe.token_weight, *(term.part(torch.ones(1)).gate for term in recipe.terms))
    readers = [repr(gate) for gate in gates if reads_entropies(gate)] if recipe.needs_teacher else []
    return " and ".join([*readers, *(type(plan).__name__ for plan in recipe.plans if "entropies" in plan.asks)])


def _looks_at(term: Term) -> Capability:
    """How much of the teacher's distribution a term reads, told by how it describes itself to the core."""
    part = term.part(torch.ones(1))
    if part.term is not None:
        return "logits"
    return "logp" if part.sampled is not None else "top_k"


def fits(recipe: Recipe, teacher: Gives) -> bool:
    """Whether the teacher is enough for the recipe and of use to it."""
    asked = needed(recipe)
    onward = teacher.recorded and not teacher.anew and recipe.needs_teacher and "student" in recipe.rollouts.authors
    enough = asked.keys() <= teacher.capabilities and not _misses(recipe, teacher) and not _counting(recipe, teacher)
    return bool(asked) and enough and not onward


def _misses(recipe: Recipe, teacher: Gives) -> bool:
    support = on_support(recipe.terms)[1]
    if support is None:
        return False
    few = {"teacher": (teacher.entries,), "student": (teacher.named,), "union": (teacher.entries, teacher.named)}
    return any(known is not None and known < support.k for known in few[support.support])


def _counting(recipe: Recipe, teacher: Gives) -> list[Divergence]:
    """What counts entries without mass, where both roles name theirs: those named twice leave some without."""
    terms, support = on_support(recipe.terms)
    if support is None or support.support != "union" or teacher.named is None:
        return []
    compared = [term.part(torch.ones(1)).divergence for term in terms]
    return [divergence for divergence in compared if divergence is not None and counts(divergence)]


def refuse_unfit(recipe: Recipe, teacher: Gives) -> None:
    """Raises UsageError for a teacher nobody asks, RecipeError for one that gives too little."""
    asked = needed(recipe)
    if not asked:
        raise UsageError(
            f"--teacher {teacher.source}: recipe {recipe.name} asks no teacher for anything. It would be loaded and "
            "never used. Leave --teacher out, or choose another --recipe."
        )
    if recipe.refresh not in (FROZEN, EXTERNAL):
        raise RecipeError(
            f"recipe {recipe.name} moves its teacher towards the student ({recipe.refresh}). {teacher.source} is "
            "another model and stays as it is. Add --set refresh=FROZEN, or leave --teacher out."
        )
    lacking = [kind for kind in asked if kind not in teacher.capabilities]
    if lacking:
        wants = "; ".join(f"{asked[kind]} needs {WORDS[kind]}" for kind in lacking)
        gives = " and ".join(WORDS[kind] for kind in WORDS if kind in teacher.capabilities)
        raise RecipeError(
            f"recipe {recipe.name} needs more than --teacher {teacher.source} gives. {wants}; {teacher.kind} gives "
            f"{gives}. {f'{teacher.unnamed} ' if 'named' in lacking and teacher.unnamed else ''}{_instead(teacher)}"
        )
    if _misses(recipe, teacher):
        raise RecipeError(
            f"recipe {recipe.name} compares {on_support(recipe.terms)[1]}. {teacher.kind} knows {teacher.entries} "
            f"entries a token{f', and {teacher.named} that are named' if teacher.named else ''}. Cache at least as "
            "many, start a server with a larger --max-logprobs, or change the term's TopK with --set."
        )
    if counting := _counting(recipe, teacher):
        raise RecipeError(
            f"recipe {recipe.name} compares {counting[0]} on the likeliest entries of both roles. Where both name the "
            f"same they are fewer, and it counts entries even if they have no mass; {teacher.kind} gives no others. "
            'Take another divergence, or TopK(support="teacher") or "student", with --set.'
        )
    if not fits(recipe, teacher):
        raise RecipeError(
            f"recipe {recipe.name} scores completions that the student writes as it learns. {teacher.kind} knows the "
            f"completions in it and no others. Give the model itself as --teacher. {_instead(teacher)}"
        )


def _instead(teacher: Gives) -> str:
    from workbench.recipes import ALL

    names = [r.name for r in ALL.values() if r.refresh in (FROZEN, EXTERNAL) and fits(r, teacher)]
    return f"Recipes that fit this teacher: {', '.join(names) or 'none of the catalogue'}."
