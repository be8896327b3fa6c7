"""Boxes to judge in: every level of isolation this machine has, and none, which must give the same verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from verifiers.programs import Box, SandboxRefused
from verifiers.programs.link import Jail

from .plain import PlainBox


@cache
def jail(level: str) -> Jail | str:
    """The jail at this level, one for all tests; or why there is none."""
    try:
        return Jail(level, 2)
    except SandboxRefused as refusal:
        return str(refusal)


@pytest.fixture(params=["plain", "bwrap", "landlock"])
def box(request: pytest.FixtureRequest) -> Box:
    if request.param == "plain":
        return PlainBox()
    found = jail(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def fast_box() -> Box:
    """The first that this machine has, for many runs of our own programs."""
    boxes = (jail(level) for level in ("bwrap", "landlock"))
    return next((found for found in boxes if not isinstance(found, str)), PlainBox())


@pytest.fixture(scope="session", autouse=True)
def _no_jail_left() -> Iterator[None]:
    yield
    for level in ("bwrap", "landlock"):
        found = jail(level)
        if not isinstance(found, str):
            found.close()
