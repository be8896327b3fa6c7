from __future__ import annotations

import pytest

from tests.sandbox import corpus
from tests.sandbox.conftest import open_or_skip

QUICK = {"verdict_forging", "host", "contamination", "honest", "self_damage", "policy"}
LATE = {"kill_parent", "cpu_threads"}
"""Rows that wait out their deadline."""


@pytest.fixture(scope="module")
def rows(corpora):
    path = corpora / "hostile-code.jsonl.gz"
    if not path.exists():
        pytest.skip("WORKBENCH_CORPORA has no hostile-code.jsonl.gz")
    return corpus.read(path)


@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_what_returns_at_once_is_judged_as_expected(level, rows):
    open_or_skip(level).close()
    chosen = [row for row in rows if row["category"] in QUICK and row["id"] not in LATE]
    assert len(chosen) > 50
    assert corpus.problems(level, chosen) == []


@pytest.mark.slow
@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_the_whole_corpus_is_judged_as_expected(level, rows):
    open_or_skip(level).close()
    assert corpus.problems(level, rows) == []


def test_without_isolation_the_corpus_finds_its_targets(rows):
    # The listeners and canaries of this harness can be hit: a clean result above is not for want of aim.
    chosen = [row for row in rows if row["id"] in ("net_udp", "net_unix_path", "env_secret", "exec_shell", "list_dirs")]
    found = corpus.problems("unsafe", chosen)
    assert {line.partition(":")[0] for line in found} >= {"net_udp", "net_unix_path", "exec_shell", "list_dirs"}
    assert [line for line in found if "connection" in line]
