"""What goes to the Hub, and what does not: over HTTP, to a double of it on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_double import HubDouble
from workbench import export

TOKEN = "hf_abcSECRET"
# huggingface_hub 2.4 hands the bytes of a large file to its HTTP library in a way that this calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(exported_runs: Path, monkeypatch):
    """`hub(me__x=False)` starts a Hub that holds a public me/x, and turns the library to it."""
    from huggingface_hub import constants

    monkeypatch.chdir(exported_runs)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    started = []

    def start(**repos: bool) -> HubDouble:
        double = HubDouble(**repos)
        started.append(double)
        double.__enter__()
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        return double

    yield start
    for double in started:
        double.__exit__()


def folder() -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path("runs/full/final").iterdir()}


def test_without_push_everything_is_listed_and_nothing_is_asked(hub, capsys) -> None:
    double = hub()
    assert export.main(["runs/full", "--hub", "me/new"]) == 0
    out = capsys.readouterr().out
    for name in folder():
        assert f"  {name}\n" in out
    assert "nothing was sent. To send it to me/new (private), add --push" in out
    assert double.asked == []


def test_pushed_it_is_private_and_whole(hub, capsys) -> None:
    double = hub()
    assert export.main(["runs/full", "--hub", "me/new", "--push"]) == 0, capsys.readouterr().err
    assert double.repos == {"me/new": True}
    assert double.files["me/new"] == folder()
    assert {said for _, _, said in double.asked if said} == {f"Bearer {TOKEN}"}
    out = capsys.readouterr()
    assert f"sent to {double.url}/me/new (private)" in out.out
    assert TOKEN not in out.out + out.err


@pytest.mark.parametrize(("private", "flags", "code"), [(False, [], 2), (False, ["--public"], 0), (True, [], 0)])
def test_a_repository_that_everybody_reads_is_filled_only_when_meant(hub, capsys, private, flags, code) -> None:
    double = hub(me__old=private)
    assert export.main(["runs/full", "--hub", "me/old", "--push", *flags]) == code
    assert ("me/old" in double.files) == (code == 0)
    assert double.repos == {"me/old": private}, "whether others can read it is not changed"
    assert code == 0 or "me/old exists and everybody can read it. Nothing was sent." in capsys.readouterr().err


def test_a_public_one_is_made_when_asked_for(hub) -> None:
    double = hub()
    assert export.main(["runs/full", "--hub", "me/new", "--push", "--public"]) == 0
    assert double.repos == {"me/new": False}


def test_what_the_hub_refuses_is_said_without_the_token(hub, capsys) -> None:
    hub().refuse = 403
    assert export.main(["runs/full", "--hub", "me/new", "--push"]) == 3
    err = capsys.readouterr().err
    assert "me/new was not sent to the Hub." in err
    assert "hf auth login" in err
    assert "SECRET" not in err


def test_offline_nothing_is_sent(hub, capsys, monkeypatch) -> None:
    double = hub()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert export.main(["runs/full", "--hub", "me/new", "--push"]) == 3
    assert "HF_HUB_OFFLINE is set. Nothing was sent." in capsys.readouterr().err
    assert double.asked == []
