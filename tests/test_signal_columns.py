"""What a step says of its signal, as columns: the same numbers as the measures, and alarms once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.test_report import knowing, record
from verifiers import Verdict
from workbench.inspector.columns import MOST, SignalWatch, columns
from workbench.inspector.diagnostics import (
    TokenRecord,
    classify,
    concentration_of,
    divergence_by_class,
    noise_rate,
)


def test_columns_are_the_measures():
    records = [*knowing(3), record("p0", ["but", " so", "\n", " dog"], [0.5, -0.25, 0.125, 3])]
    found = columns(records)
    kinds = [classify(r.text) for r in records]
    for row in divergence_by_class(records, kinds):
        assert found[f"divergence_share.{row.name}"] == pytest.approx(row.of_divergence.value)
    assert found["concentration"] == pytest.approx(concentration_of(records).value)
    assert found["answer_noise"] == noise_rate(records).rate.value == 0
    assert (found["answer_d_right"], found["answer_d_wrong"]) == (2.0, -2.0)
    assert found["marker_d"] == 0.5
    assert found["mention_share"] == 0
    assert sum(v for k, v in found.items() if k.startswith("divergence_share.")) == pytest.approx(1)


def test_what_cannot_be_said_is_left_out():
    assert columns([]) == {}
    silent = record("p", ["dog"], [0.0], "unjudged")
    found = columns([silent])
    assert found == {"mention_share": 0.0}
    told = record("p", ["as the reference says"], [0.0], "unjudged")
    assert columns([told])["mention_share"] == 1.0
    assert columns([told], questions={"p": "what means 'as the reference says'?"})["mention_share"] == 0.0


def test_only_so_many_tokens_are_looked_at():
    n = MOST // 2
    long = [TokenRecord(str(i), ("1",) * n, *np.ones((6, n)), Verdict("wrong")) for i in range(3)]
    assert columns(long)["divergence_share.maths"] == 1
    marked = [*long[:2], record("x", [" so"], [1e9])]
    assert columns(marked)["divergence_share.style"] == 0, "the third one is beyond"
    assert "concentration" in columns([TokenRecord("y", ("1",) * (3 * MOST), *np.ones((6, 3 * MOST)))]), (
        "one is always seen"
    )


def test_alarms_are_said_once_and_only_when_it_lasts():
    noisy = {"answer_noise": 0.6, "divergence_share.style": 0.3, "divergence_share.format": 0.3}
    fine = {"answer_noise": 0.1, "divergence_share.style": 0.1, "divergence_share.format": 0.1}
    watch = SignalWatch()
    assert [watch.observe(x) for x in (noisy, noisy, fine)][2] == [], "two steps are no trend"
    watch = SignalWatch()
    said = [watch.observe(noisy) for _ in range(2)]
    watch = SignalWatch(watch.state_dict())
    said += [watch.observe(noisy), watch.observe(noisy)]
    assert [len(x) for x in said] == [0, 0, 2, 0]
    assert "0.60 of the answer tokens" in said[2][0]
    assert SignalWatch().observe({}) == []
    assert SignalWatch().observe({"answer_noise": math.nan}) == []
