"""The doctor tells what is there, and notices what would stop a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import doctor
from workbench.doctor import Finding

ROOT = Path(__file__).resolve().parents[1]


def states(check) -> dict[str, str]:
    return {finding.name: finding.state for finding in check()}


def test_a_machine_that_runs_the_tests_has_no_problems(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "memory", "disk", "hub cache", "downloads", "verifier", "package verifiers", "cpu"):
        assert f" {name} " in out
    assert out.endswith("nothing stands in the way of a run\n")


def test_json_says_the_same(capsys):
    assert doctor.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["problems"] == 0
    assert {"name", "state", "text"} == set(said["findings"][0])
    assert len({f["name"] for f in said["findings"]}) == len(said["findings"])


def test_a_problem_is_counted_and_is_the_exit_code(monkeypatch, capsys):
    def check():
        yield Finding("thing", "problem", "broken \x1b[31m")

    monkeypatch.setattr(doctor, "CHECKS", (check,))
    assert doctor.main([]) == 1
    assert capsys.readouterr().out == f"problem  {'thing':20} broken \\x1b[31m\n\n1 problems\n"


def test_a_missing_package_is_a_problem_only_if_it_is_needed(monkeypatch):
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", nothing)
    found = states(doctor.versions)
    assert found["torch"] == "problem"
    assert "gradio" not in found


def test_a_foreign_package_in_front_is_a_problem(tmp_path):
    (tmp_path / "verifiers").mkdir()
    (tmp_path / "verifiers" / "__init__.py").write_text("")
    code = (
        "from workbench import doctor; print([f.state for f in doctor.shadowed()], [f.state for f in doctor.judging()])"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.strip() == "['ok', 'problem', 'ok'] ['problem']", run.stderr


def test_a_foreign_package_behind_ours_is_mentioned(tmp_path, monkeypatch):
    (tmp_path / "prompts.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert states(doctor.shadowed) == {"package workbench": "ok", "package verifiers": "ok", "package prompts": "note"}


def test_offline_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert any("off" in f.text for f in doctor.caches() if f.name == "downloads")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert any(f.text == "allowed" for f in doctor.caches() if f.name == "downloads")


def test_cached_models_are_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--Qwen--Qwen3-0.6B").mkdir()
    assert any("Qwen/Qwen3-0.6B" in f.text for f in doctor.caches())


def test_a_judge_that_errs_is_a_problem(monkeypatch):
    import verifiers

    monkeypatch.setattr(verifiers, "verify", lambda *_: verifiers.Verdict("timeout", reason="no worker"))
    (finding,) = doctor.judging()
    assert finding.state == "problem"
    assert "no worker" in finding.text


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="only Linux says how much memory is free")
def test_memory_is_measured():
    total, free = doctor._memory()
    assert total
    assert free
    assert free <= total
