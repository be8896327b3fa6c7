"""The benchmarks run, on tiny sizes and without peers; and the page about them says what their output says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of `benchmarks/`, which is a folder of scripts and no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__(name)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/run.py", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def measured(folder: Path, model: Path, rows: str) -> tuple[str, dict]:
    out = folder / "results.json"
    done = run("--quick", "--rows", rows, "--repeat", "2", "--model", str(model), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_rows_that_need_no_peer_are_measured_and_the_rest_say_why(tiny_folder, tmp_path, monkeypatch) -> None:
    printed, kept = measured(tmp_path, tiny_folder, "jsd")
    jsd, (ways,) = kept["rows"]["jsd"], kept["rows"]["jsd"]["ways"].values()
    assert "TRL, Liger: not asked for" in jsd["skipped"]
    assert "skipped: TRL, Liger: not asked for" in printed
    assert set(ways) == {"floor", "workbench", "plain autograd", "checkpointing"}
    assert all(len(way["seconds"]) == 2 and min(way["seconds"]) > 0 for way in ways.values())
    losses = [way["first"]["facts"]["loss"] for name, way in ways.items() if name != "floor"]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5), "all ways compute one loss"
    assert not jsd["notes"]
    over_floor = next(claim for claim in jsd["claims"] if claim["required"] == "<= 1.25 x")
    divided = [a / b for a, b in zip(ways["workbench"]["seconds"], ways["floor"]["seconds"], strict=True)]
    assert over_floor["found"] == pytest.approx(divided)
    text = script("page", monkeypatch).render(kept)
    assert all(claim["what"] in text for row in kept["rows"].values() for claim in row["claims"])


@pytest.mark.slow
def test_every_row_runs(tiny_folder, tmp_path) -> None:
    _, kept = measured(tmp_path, tiny_folder, "step,kl,memory,padded,frozen,sparse,error,decode")
    assert list(kept["rows"]) == ["kl", "memory", "padded", "frozen", "sparse", "error", "decode", "step"]
    assert any("all wrote the same" in note for note in kept["rows"]["decode"]["notes"])
    assert kept["rows"]["step"]["skipped"] == ["not asked for"]
    errors = kept["rows"]["error"]["claims"]
    assert all(claim["holds"] for claim in errors if "workbench" in claim["what"])
    assert len({claim["what"] for claim in errors}) == 3 * 2 * 3
    assert kept["rows"]["sparse"]["claims"]


def test_a_claim_is_about_the_median(monkeypatch) -> None:
    Claim = script("rows", monkeypatch).Claim
    assert Claim("", [1.0, 1.2, 9.0], at_most=1.25).holds is True
    assert Claim("", [1.0, 1.3, 1.3], at_most=1.25).holds is False
    assert Claim("", [3.0, 3.1], at_least=3.0).holds is True
    assert Claim("", [2.9], at_least=3.0).holds is False
    assert Claim("", [2.9]).holds is None


def test_ratios_are_taken_within_a_repetition(monkeypatch) -> None:
    Measured = script("harness", monkeypatch).Measured
    found = Measured(seconds={"a": [2.0, 30.0], "b": [1.0, 10.0]})
    assert found.ratios("a", "b") == [2.0, 3.0]
    assert found.ratios("a", "c") == []


def test_a_way_that_fails_is_skipped_with_a_reason(monkeypatch) -> None:
    harness = script("harness", monkeypatch)
    way = harness.Way("with_torch:Plain", {"case": "nowhere.pt", "n": 1})
    found = harness.paired({"broken": way, "large": harness.Way("with_torch:Plain", {}, bytes=1 << 60)}, 1)
    assert found.seconds == {}
    assert set(found.skipped) == {"broken", "large"}


def test_a_padded_mask_counts_what_it_was_asked(monkeypatch) -> None:
    uneven = script("inputs", monkeypatch).uneven
    for n in (512, 2048):
        mask = uneven(n, n // 4).view(8, -1)
        assert int(mask.sum()) == n // 4
        assert bool(mask[0].all())
        assert all(bool((row[1:] <= row[:-1]).all()) for row in mask), "padded on the right"


def test_the_page_is_what_the_results_say(monkeypatch) -> None:
    page = script("page", monkeypatch)
    if not page.RESULTS.is_file():
        pytest.skip("nothing was measured here")
    assert page.PAGE.read_text(encoding="utf-8") == page.render(json.loads(page.RESULTS.read_text()))


def test_an_unknown_row_is_refused() -> None:
    done = run("--rows", "speed")
    assert done.returncode == 2
    assert "no row 'speed'" in done.stderr
