"""A folder to the Hub: what would go there, and then only when asked. The token is the environment's or the login's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def listing(folder: Path) -> list[tuple[str, int]]:
    """(path in the repository, bytes) of everything that would be sent."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [(str(p.relative_to(folder)), p.stat().st_size) for p in files]


def refuse_unshareable(folder: Path, name: str) -> None:
    """Refuse what nobody else could use. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--hub {name} names no repository. One has an owner. Write owner/name.")
    config = folder / "adapter_config.json"
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") if config.is_file() else None
    if base is not None and (Path(base).is_absolute() or Path(base).is_dir()):
        raise UsageError(
            f"--hub: the adapter's base is {Path(base).name}, a folder of this machine. Nobody else could load it. "
            "Send the merged model: --merged."
        )


def push(folder: Path, name: str, *, public: bool, files: Sequence[str]) -> str:
    """Create the repository where it does not exist, private unless `public`, and send `files`; returns its address.

    Raises UsageError where a repository that exists is public and nobody said `public`; InputError for whatever the
    Hub or the network refuses.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise InputError("--push: HF_HUB_OFFLINE is set. Nothing was sent. Unset it, or leave --push out.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        try:
            private = api.repo_info(name).private
        except RepositoryNotFoundError:
            api.create_repo(name, private=not public)
            private = not public
        if private is False and not public:
            raise UsageError(
                f"--hub {name} exists and everybody can read it. Nothing was sent. Add --public to mean it."
            )
        done: Any = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message="Export of a run"
        )
    except UsageError:
        raise
    except Exception as error:  # the Hub, the network or the token: all end here, none is ours
        first = _without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise InputError(
            f"{name} was not sent to the Hub. {type(error).__name__}: {first[:200]}. Check the connection, and log in "
            "with hf auth login or HF_TOKEN."
        ) from None  # a traceback may quote the token
    return str(getattr(done, "repo_url", None) or f"{api.endpoint}/{name}")


def _without_secrets(text: str) -> str:
    return re.sub(r"hf_\w+", "hf_...", text)
