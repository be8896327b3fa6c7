"""Pictures for notebooks, drawn with matplotlib: every axis has a unit, every estimate its interval and n.

matplotlib is imported when something is drawn. The colours are those of the token view; none is the only carrier.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.inspector.seen import Floats, Seen
from workbench.text import printable
from workbench.train.comparison import pareto
from workbench.train.evaluate import ArmResult
from workbench.train.intervals import FEWEST, Difference, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORANGE, PURPLE, BLUE, GREY = "#e66101", "#5e3c99", "#0072b2", "#767676"
_COLOURS = (GREY, BLUE, ORANGE, PURPLE, "#009e73", "#a6761d")
_MARKS = "osD^vP"
_WIDTH = 7.2


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn figure: a notebook shows it where it is a cell's value, without pyplot and its open figures."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.figure.savefig(out, format="png")
        return out.getvalue()


def plane(arms: Sequence[ArmResult], title: str = "") -> Picture:
    """Accuracy against mean tokens, 95 % intervals on both axes; arms that none beats are joined and filled.

    Up and to the left is better. An arm that another one beats in both is hollow.
    """
    figure, axes = _figure(3.9)
    front = pareto(arms)
    points = {a.name: (a.arm.tokens, a.arm.accuracy) for a in arms}
    axes.plot(
        [points[n][0].value for n in front],
        [100 * points[n][1].value for n in front],
        ":",
        color="black",
        lw=1,
        zorder=1,
    )
    for k, arm in enumerate(arms):
        tokens, accuracy = points[arm.name]
        colour = _COLOURS[k % len(_COLOURS)]
        axes.errorbar(
            tokens.value,
            100 * accuracy.value,
            xerr=_arms(tokens),
            yerr=_arms(accuracy, 100),
            fmt=_MARKS[k % len(_MARKS)],
            color=colour,
            mfc=colour if arm.name in front else "white",
            ms=max(11 - 1.5 * k, 6),  # arms that lie upon each other are both seen
            lw=1.4,
            capsize=3,
            label=_label(arm, arm.name in front),
        )
    axes.set_xlabel("mean tokens a completion (fewer is better)")
    axes.set_ylabel("right answers, %")
    _from_zero(axes)
    axes.set_title(printable(title) or f"accuracy against length, {_n(arms)} problems, 95 % intervals", fontsize=10)
    said = "filled and joined: no other arm is better in both"
    figure.legend(loc="outside lower center", ncols=2, frameon=False, title=said, fontsize=9, title_fontsize=9)
    return Picture(figure)


def by_group(groups: Mapping[str, Sequence[ArmResult]]) -> Picture:
    """The same two figures by group: accuracy and mean tokens of every arm, 95 % intervals."""
    figure, (left, right) = _figure(3.2, columns=2)
    names = [f"{name}\n(n={_n(arms)})" for name, arms in groups.items()]
    arms = [arm.name for arm in next(iter(groups.values()), ())]
    for k, name in enumerate(arms):
        some = [next(a for a in found if a.name == name).arm for found in groups.values()]
        place = np.arange(len(some), dtype=np.float64) + (k - (len(arms) - 1) / 2) * 0.16
        _points(left, place, [a.accuracy for a in some], k, name, scale=100)
        _points(right, place, [a.tokens for a in some], k, name)
    for axes, unit in ((left, "right answers, %"), (right, "mean tokens a completion")):
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(unit)
        _from_zero(axes)
    figure.suptitle(
        f"by steps of the reference, 95 % intervals; hollow: fewer than {FEWEST} problems, no interval", fontsize=10
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), frameon=False)
    return Picture(figure)


def differences(found: Sequence[Difference], title: str = "") -> Picture:
    """Paired differences (and ratios) below each other with their 95 % intervals; the dashed line is no difference.

    Each figure has an axis of its own. Hollow: within noise.
    """
    figures = list(dict.fromkeys(d.figure for d in found))
    rows = max(sum(d.figure == f for d in found) for f in figures)
    figure, panels = _figure(1.3 + 0.45 * rows, columns=len(figures))
    for axes, name in zip(np.atleast_1d(np.asarray(panels)), figures, strict=True):
        some = [d for d in found if d.figure == name]
        for k, d in enumerate(some):
            colour = BLUE if d.clear else GREY
            axes.errorbar(
                d.estimate.value,
                k,
                xerr=_arms(d.estimate),
                fmt="o",
                color=colour,
                mfc=colour if d.clear else "white",
                capsize=3,
            )
        axes.axvline(some[0].reference, color="black", lw=1, ls="--")
        axes.set_yticks(range(len(some)), [printable(d.name) for d in some])
        axes.set_ylim(len(some) - 0.5, -0.5)
        axes.set_xlabel(f"{name}, {'ratio' if some[0].reference else 'difference'} (n={some[0].estimate.n})")
    figure.suptitle(printable(title) or "paired over problems, 95 % intervals; filled: clear of noise", fontsize=10)
    return Picture(figure)


def tokens(series: Mapping[str, Seen], title: str = "") -> Picture:
    """Teacher minus student log-prob at every token of one completion, a row a teacher, on one scale.

    Orange bars upwards: the teacher says more; purple downwards: the student says more.
    """
    figure, panels = _figure(0.9 + 1.15 * len(series), rows=len(series), sharex=True, sharey=True)
    for axes, (name, seen) in zip(np.atleast_1d(np.asarray(panels)), series.items(), strict=True):
        gap = seen.difference
        axes.bar(range(len(gap)), gap, color=np.where(gap > 0, ORANGE, PURPLE), width=0.8)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_title(f"{printable(name)}: sum {gap.sum():+.2f} nat", loc="left", fontsize=9)
        axes.set_ylabel("nat", fontsize=8)
    last = np.atleast_1d(np.asarray(panels))[-1]
    _token_axis(last, next(iter(series.values())).text)
    said = "teacher minus student log-prob of written tokens (orange, up: teacher says more)"
    figure.suptitle(printable(title) or said, fontsize=10)
    return Picture(figure)


def strip(
    rows: Mapping[str, Floats], text: Sequence[str], title: str = "", unit: str = "share of the row, %"
) -> Picture:
    """One row a method, one column a token: the share of a row's total that each token has. Dark is much.

    A row without anything (equal contexts, closed gates) is hatched and says so.
    """
    shares = np.array([np.divide(v, v.sum(), out=np.zeros(len(v)), where=v.sum() > 0) for v in rows.values()])
    figure, axes = _figure(1.5 + 0.3 * len(rows))
    image = axes.imshow(100 * shares, aspect="auto", cmap="Blues", vmin=0, vmax=max(100 * float(shares.max()), 1e-9))
    for k, share in enumerate(shares):
        if not share.any():
            axes.text(0, k, "nothing", va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(rows)), [printable(name) for name in rows])
    _token_axis(axes, text)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.9)
    axes.set_title(
        printable(title) or "share of a method's pull (gradient at the logits) that each token has", fontsize=10
    )
    return Picture(figure)


def intervals(found: Mapping[str, Estimate], unit: str, title: str = "", reference: float | None = None) -> Picture:
    """Named estimates below each other with their 95 % intervals and n."""
    figure, axes = _figure(1.2 + 0.4 * len(found))
    for k, estimate in enumerate(found.values()):
        axes.errorbar(estimate.value, k, xerr=_arms(estimate), fmt=_MARKS[k % len(_MARKS)], color=BLUE, ms=7, capsize=3)
    if reference is not None:
        axes.axvline(reference, color="black", lw=1, ls="--")
    axes.set_yticks(range(len(found)), [f"{printable(name)} (n={e.n})" for name, e in found.items()])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(unit)
    axes.set_title(printable(title) or "95 % intervals, problems resampled", fontsize=10)
    return Picture(figure)


def _figure(height: float, **grid: Any) -> tuple[Figure, Any]:
    """One figure with axes, as small multiples where asked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=100, layout="constrained")
    panels = figure.subplots(grid.pop("rows", 1), grid.pop("columns", 1), **grid)
    for axes in np.atleast_1d(np.asarray(panels)):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return figure, panels


def _arms(estimate: Estimate, scale: float = 1.0) -> list[list[float]]:
    """What an error bar takes: distances, never negative, 0 where there is no interval."""
    ends = np.array([[estimate.value - estimate.low], [estimate.high - estimate.value]]) * scale
    return np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0).tolist()


def _points(axes: Axes, place: Floats, found: Sequence[Estimate], k: int, name: str, scale: float = 1.0) -> None:
    mark, colour = _MARKS[k % len(_MARKS)], _COLOURS[k % len(_COLOURS)]
    axes.plot([], [], mark, color=colour, ms=6, label=printable(name))
    for x, estimate in zip(place, found, strict=True):
        enough = estimate.n >= FEWEST
        fill, ends = (colour, _arms(estimate, scale)) if enough else ("white", None)
        axes.errorbar(x, scale * estimate.value, yerr=ends, fmt=mark, color=colour, mfc=fill, ms=6, capsize=2)


def _from_zero(axes: Axes) -> None:
    """The axis begins at zero, with room for a mark that stands there."""
    axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])


def _label(arm: ArmResult, front: bool) -> str:
    row = arm.arm
    return f"{printable(arm.name)}: {row.correct}/{row.judged}, cut {row.truncated}" + ("" if front else " (beaten)")


def _n(arms: Sequence[ArmResult]) -> int:
    return len(arms[0].scores) if arms else 0


def _token_axis(axes: Axes, text: Sequence[str]) -> None:
    """Each token under its column, as the view writes it: nothing invisible, spaces as a low mark."""
    axes.set_xticks(range(len(text)), [_shown(piece) for piece in text], rotation=90, fontsize=8, family="monospace")
    axes.set_xlim(-0.6, len(text) - 0.4)


def _shown(piece: str) -> str:
    # `$` would begin mathematics, which a model can break.
    return printable(piece)[:14].replace(" ", "\u00b7").replace("$", r"\$") or "\u00b7"
