"""`python -m workbench.serve`: start a vLLM server of its own environment on a model, the way --engine vllm needs it.

The model is written to a folder first, with its output layer written out: a server that starts on a tied checkpoint
keeps an old output layer when it is sent new weights.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.cli import Arguments, run_command
from workbench.config import parse_adapter
from workbench.engine.loading import load
from workbench.engine.serving.client import refuse_public
from workbench.engine.serving.publishing import write_folder
from workbench.errors import UsageError

VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # the routes that pause, reload and reset
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = Arguments(prog="python -m workbench.serve", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--model", default="smollm2", help="as --model of the main job (default: smollm2)")
    parser.add_argument("--python", default=".venv-serve/bin/python", help="the interpreter of vLLM's own environment")
    parser.add_argument("--folder", help="where the model is written (default: .serve/MODEL)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; public ones are refused")
    parser.add_argument("--port", type=int, default=8911)
    parser.add_argument("--adapter", help="serve adapters over this model: lora:r=16")
    parser.add_argument(
        "--logprobs",
        choices=("raw", "processed"),
        default="raw",
        help="raw for top-p and top-k at temperature 1 (default), processed for other temperatures",
    )
    parser.add_argument("--max-model-len", type=int, default=1024, help="tokens, prompt and completion together")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cache-gib", type=int, default=1, help="memory for keys and values, on a CPU")
    return parser


def command(asked: argparse.Namespace, folder: Path) -> list[str]:
    """What starts the server."""
    adapter = parse_adapter(asked.adapter) if asked.adapter else None
    lora = ["--enable-lora", "--max-loras", "3", "--max-lora-rank", str(_rank(adapter.rank))] if adapter else []
    return [
        *(asked.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--served-model-name", "policy", "--host", asked.host, "--port", str(asked.port)),
        *("--dtype", asked.dtype, "--max-model-len", str(asked.max_model_len), "--enforce-eager"),
        *("--logprobs-mode", f"{asked.logprobs}_logprobs", "--max-logprobs", "64", "--enable-scale-out"),
        *lora,
    ]


def _rank(rank: int) -> int:
    """The next of the ranks that vLLM takes."""
    return next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def environment(asked: argparse.Namespace) -> dict[str, str]:
    """Variables of the server: ours, and on a CPU its memory and its cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    cpu = {
        "VLLM_CPU_KVCACHE_SPACE": str(asked.cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # by itself it leaves one idle
    }
    return {**os.environ, **VARIABLES, **({} if torch.cuda.is_available() else cpu)}


def prepared(asked: argparse.Namespace) -> Path:
    """The model's folder, written if it is not there yet. Raises WorkbenchError."""
    refuse_public(f"http://{asked.host}:{asked.port}")
    if asked.host.strip("[]") in ("", "0.0.0.0", "::"):
        raise UsageError(
            f"--host {asked.host} listens on every address of this machine. The routes that take weights ask for no "
            "key. Name one address, and tunnel to it from elsewhere."
        )
    if not Path(asked.python).is_file():
        raise UsageError(
            f"no interpreter {asked.python}. A server needs an environment of its own. Run make serve, which makes it, "
            "or name one: --python serve/bin/python"
        )
    folder = Path(asked.folder or Path(".serve") / asked.model.strip("/").replace("/", "--")).absolute()
    if not (folder / "config.json").is_file():
        loaded = load(asked.model, dtype=torch.float32)
        write_folder(loaded.model, loaded.tokenizer, folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder, then become the server. Returns only when it cannot start."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: Sequence[str]) -> int:
    asked = arguments().parse_args(argv)
    folder = prepared(asked)
    print(f"serving {asked.model} ({folder}). When it is ready, in another terminal:", flush=True)
    print(f"  python -m workbench.opsd --engine vllm --server http://{asked.host}:{asked.port}", flush=True)
    line = command(asked, folder)
    os.execve(line[0], line, environment(asked))


if __name__ == "__main__":
    raise SystemExit(main())
