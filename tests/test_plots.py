"""Pictures hold what they were given: every number is read back from the drawn marks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_comparison import arm
from workbench.inspector import plots
from workbench.inspector.seen import COUNTED, Seen
from workbench.train.comparison import against, by_group
from workbench.train.intervals import Estimate


def seen(gap: list[float], text: tuple[str, ...]) -> Seen:
    n = len(gap)
    zero = np.zeros(n)
    ranks = np.zeros(n, dtype=np.int64)
    logp = np.array(gap)
    return Seen("p", (1,) * n, text, zero, logp, zero, zero, zero, zero, zero, ranks, ranks, zero, (COUNTED,) * n)


def words(picture: plots.Picture) -> str:
    from matplotlib.text import Text

    return "\n".join(t.get_text() for t in picture.figure.findobj(Text))


def inside(picture: plots.Picture) -> bool:
    """Every title lies within its figure, at the size at which it is stored."""
    picture._repr_png_()
    axes, box = picture.figure.axes, picture.figure.bbox
    named = [
        *(t for a in axes for t in (a.title, a._left_title, a.xaxis.label, a.yaxis.label)),
        picture.figure._suptitle,
    ]
    shown = [t.get_window_extent() for t in named if t is not None and t.get_text()]
    return all(box.x0 <= x.x0 and x.x1 <= box.x1 and box.y0 <= x.y0 and x.y1 <= box.y1 for x in shown)


def test_the_plane_has_intervals_on_both_axes_and_marks_who_is_beaten() -> None:
    arms = [
        arm("base", *[True, False] * 6, tokens=50),
        arm("brief\u202e", *[True] * 12, tokens=20),
        arm("bad", *[False] * 12, tokens=60),
    ]
    picture = plots.plane(arms)
    (axes,) = picture.figure.axes
    assert len(axes.containers) == 3
    for drawn, one in zip(axes.containers, arms, strict=True):
        assert drawn.has_xerr
        assert drawn.has_yerr
        (x,), (y,) = drawn.lines[0].get_data()
        assert (x, y) == (one.arm.tokens.value, 100 * one.arm.accuracy.value)
        bars = drawn.lines[2][1].get_segments()[0]
        assert bars[:, 1].tolist() == pytest.approx([100 * one.arm.accuracy.low, 100 * one.arm.accuracy.high])
    front = axes.lines[0]
    assert list(front.get_xdata()) == [20], "the one that beats all is the front"
    labels = [t.get_text() for t in picture.figure.legends[0].get_texts()]
    assert labels == ["base: 6/12, cut 0 (beaten)", "brief\\u202e: 12/12, cut 0", "bad: 0/12, cut 0 (beaten)"]
    assert "12 problems" in words(picture)
    assert inside(picture)
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_bins_say_their_n() -> None:
    arms = [arm("a", True, False, True), arm("b", False, False, True)]
    picture = plots.by_group(by_group(arms, {"p0": "1 step", "p1": "2 steps", "p2": "2 steps"}))
    said = words(picture)
    assert "1 step\n(n=1)" in said
    assert "2 steps\n(n=2)" in said
    left = picture.figure.axes[0]
    assert [float(c.lines[0].get_ydata()[0]) for c in left.containers] == [100.0, 50.0, 0.0, 50.0], "arm by arm"
    assert not any(c.has_yerr for c in left.containers), "two problems have no 95 % interval"
    many = plots.by_group(by_group([arm("a", *[True, False] * 3)], {f"p{i}": "1 step" for i in range(6)}))
    assert all(c.has_yerr for axes in many.figure.axes for c in axes.containers), "six have"
    assert inside(picture)


def test_differences_are_hollow_within_noise() -> None:
    base = arm("base", *[False] * 12, tokens=50)
    found = against(base, [arm("other", *[True] * 12, tokens=49), arm("same", *[False] * 12, tokens=50)])
    picture = plots.differences(found)
    accuracy, tokens = picture.figure.axes
    assert inside(picture)
    assert [c.lines[0].get_markerfacecolor() for c in accuracy.containers] == [plots.BLUE, "white"]
    assert [float(c.lines[0].get_xdata()[0]) for c in tokens.containers] == [0.98, 1.0]
    assert [line.get_xdata()[0] for axes in (accuracy, tokens) for line in axes.lines if line.get_ls() == "--"] == [
        0,
        1,
    ]


def test_tokens_are_coloured_by_who_says_more_and_stand_under_their_bars() -> None:
    text = (" 2", "$x$", "\x1b[0m", "<|im_end|>")
    picture = plots.tokens({"own": seen([1.0, -2.0, 0.5, 0.0], text), "same": seen([0.0] * 4, text)})
    top, bottom = picture.figure.axes
    assert [bar.get_height() for bar in top.patches] == [1.0, -2.0, 0.5, 0.0]
    from matplotlib.colors import to_hex

    assert [to_hex(bar.get_facecolor()) for bar in top.patches][:3] == [plots.ORANGE, plots.PURPLE, plots.ORANGE]
    assert [t.get_text() for t in bottom.get_xticklabels()] == ["\u00b72", r"\$x\$", "\\x1b[0m", "<|im_end|>"]
    assert "own: sum -0.50 nat" in words(picture)
    assert inside(picture)


def test_a_strip_shows_shares_of_its_row_and_says_where_there_is_nothing() -> None:
    picture = plots.strip({"one": np.array([1.0, 3.0]), "none": np.zeros(2)}, ("a", "b"))
    (image,) = picture.figure.axes[0].images
    assert image.get_array().tolist() == [[25.0, 75.0], [0.0, 0.0]]
    assert "nothing" in words(picture)
    assert inside(picture)


def test_estimates_without_an_interval_are_drawn_without_one() -> None:
    some = {"sure": Estimate(1.0, 0.5, 2.0, 9), "one problem": Estimate(1.0, -np.inf, np.inf, 1)}
    picture = plots.intervals(some, "nat", reference=0)
    lengths = [np.ptp(c.lines[2][0].get_segments()[0][:, 0]) for c in picture.figure.axes[0].containers]
    assert lengths == [1.5, 0.0]
    assert "one problem (n=1)" in words(picture)
    assert inside(picture)
