"""Whose weights teach: how the teacher follows when it is the student's own checkpoint, or that it is another model."""

from __future__ import annotations

from workbench.records import Refresh

FROZEN = Refresh(every=0, rate=0.0)
"""The initial policy, for ever."""
LIVE = Refresh(every=1, rate=1.0)
"""The student itself, as of now; no second copy is kept."""
EXTERNAL = Refresh(every=0, rate=0.0, external=True)
"""Another model, given by `--teacher`."""


def ema(decay: float) -> Refresh:
    """Teacher <- decay * teacher + (1 - decay) * student after every step."""
    return Refresh(every=1, rate=1.0 - decay)


def every(steps: int) -> Refresh:
    """A hard copy of the student after every `steps` optimizer steps."""
    return Refresh(every=steps, rate=1.0)
