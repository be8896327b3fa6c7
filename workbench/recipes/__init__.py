"""The catalogue: every method is a literal, one file a family.

The room promises that each recipe constructs, prints as five answers and runs through `train/step.py` unchanged.
Nothing here computes, registers itself or imports the engine.
"""

from __future__ import annotations

from workbench.recipe import Recipe
from workbench.recipes import compression, controls, on_policy, outcome, self_distillation, white_box
from workbench.recipes.embedded import SMOLLM2, Setting

ALL: dict[str, Recipe] = {
    recipe.name: recipe
    for family in (self_distillation, compression, controls, white_box, on_policy, outcome)
    for recipe in family.RECIPES
}

FOR_MODEL: dict[str, dict[str, Setting]] = {"smollm2": SMOLLM2}
"""Recipes as set for a model the papers did not train, with the job they were set for."""
