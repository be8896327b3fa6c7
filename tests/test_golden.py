"""Training does what it did. What moves on purpose is renewed by `make golden` and listed under Changes results."""

from __future__ import annotations

import json

import pytest

from tests.golden.trajectories import FAMILIES, FILE, STEPS, trajectory

STORED = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_steps_are_what_they_were(name, tiny_folder):
    fresh = trajectory(FAMILIES[name], tiny_folder)
    assert len(STORED[name]) == STEPS
    for step, (old, new) in enumerate(zip(STORED[name], fresh, strict=True), start=1):
        assert new == pytest.approx(old, abs=1e-9, rel=1e-9, nan_ok=True), f"step {step}"


def test_the_stored_steps_moved_something():
    for name, rows in STORED.items():
        assert len({row["loss"] for row in rows}) == STEPS, name
        assert all(row["grad_norm"] > 0 for row in rows), name


def test_nothing_is_stored_that_nobody_checks():
    assert set(STORED) == set(FAMILIES)
