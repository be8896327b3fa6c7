"""How to run: `RunConfig`, one flat frozen record. What the method is stands in a `Recipe`; the two never mix.

A field that is None leaves the choice to the recipe (or to the model, where its docstring says so). Field names are
the flags with `_` for `-`; docstrings are the help text.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import UsageError, nearest

ALIASES = {
    "model_name_or_path": "model",
    "dataset_name": "problems",
    "max_steps": "steps",
    "num_generations": "group",
    "max_completion_length": "max_new_tokens",
    "learning_rate": "lr",
    "run_name": "name",
    "report_to": "track",
}
"""Flag names of TRL and transformers whose meaning is the same, and nothing else."""

THIS_TIME_ONLY = frozenset({"resume", "fresh", "dry_run", "debug", "parallel", "offload"})
"""Fields that say what one start of the command does: a stored configuration that is used again leaves them out."""


@dataclass(frozen=True)
class Adapter:
    """LoRA on every linear layer: W + (alpha / rank) B A."""

    rank: int = 16
    alpha: int = 32


def parse_adapter(text: str) -> Adapter | None:
    """`none` or `lora[:r=16,alpha=32]`; alpha alone defaults to twice the rank. Raises UsageError."""
    if text == "none":
        return None
    kind, colon, rest = text.partition(":")
    pairs = [part.partition("=")[::2] for part in rest.split(",")] if colon else []
    options = {key: int(value) for key, value in pairs if re.fullmatch("[0-9]{1,6}", value)}
    rank = options.get("r", 16)
    adapter = Adapter(rank, options.get("alpha", 2 * rank))
    if (
        kind == "lora"
        and len(options) == len(pairs)
        and options.keys() <= {"r", "alpha"}
        and min(rank, adapter.alpha) > 0
    ):
        return adapter
    raise UsageError(
        f"--adapter {text!r} is no adapter. It is none, or lora with a rank and an alpha from 1 on. "
        "Write --adapter lora:r=16,alpha=32"
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Distil a model against its own privileged view."""

    model: str = "smollm2"
    """Hub id, HF folder, .gguf file, adapter folder, or smollm2 (embedded). Also --model-name-or-path."""
    chat_template: str | None = None
    """A Jinja file to use as the chat template of both roles, for a tokenizer that has none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type the weights are held in; auto is float32, but bfloat16 on a GPU when only an adapter trains."""
    engine: Literal["hf", "vllm"] = "hf"
    """Who generates: this process, or vLLM servers that are sent the weights after every step."""
    server: str | None = None
    """Addresses of the servers of --engine vllm, with commas between them: http://127.0.0.1:8911 (make serve)."""
    ahead: int = 0
    """1 writes the rollouts of the next step on the servers while this one trains, with weights one step older."""
    parallel: Literal["auto", "ddp", "fsdp2"] = "auto"
    """How the processes that torchrun started hold the model: ddp, all of it in each; fsdp2, its tensors split among
    them; auto is ddp while it fits. In one process leave it."""
    offload: bool = False
    """With --parallel fsdp2 on GPUs: weights, gradients and the optimizer's averages stay in the host's memory, where
    AdamW moves them. Layers visit the device to run."""
    adapter: str | None = None
    """none (all weights) or lora[:r=16,alpha=32]; with an adapter the teacher is the model with it off."""

    teacher: str | None = None
    """Another model as the teacher, given as --model is; a folder of cache_teacher; a .jsonl[.gz] of texts it wrote; or
    the address of a server, http://HOST:PORT[#MODEL], its key in OPSD_TEACHER_KEY. Not given: it teaches itself."""
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type another model's weights are held in; auto is bfloat16 on a GPU, else float32."""
    teacher_device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where another model computes; auto is where the student does."""
    reference: str | None = None
    """The model of the third role, for recipes that have one; not given: the initial student."""

    problems: str | None = None
    """sums[:terms=2,max=30] (generated), code[:difficulty=easy] (packaged programs), a .jsonl[.gz], .json or .parquet
    file, a hub id, or a reasoning-gym family. Also --dataset-name."""
    split: str | None = None
    """Which split of a hub data set; train where it has one."""
    limit: int | None = None
    """Use only the first N problems."""
    columns: tuple[str, ...] = ()
    """Which column is what, where names do not say it: problem=question solution=answer_cot."""
    require: tuple[str, ...] = ()
    """Drop problems that lack one of these fields: --require solution,document."""
    max_prompt_tokens: int | None = None
    """Drop problems whose prompt is longer in either role; without it a prompt too long for the model is an error."""
    held_out: str | None = None
    """A problem set to evaluate on, given as --problems is; otherwise some of the problems are kept apart."""

    recipe: str = "opsd"
    """The method: a name from `python -m workbench`."""
    stages: tuple[str, ...] = ()
    """Recipes one after the other in place of --recipe: sft:200 opsd:100:plateau=2 grpo:50:gradient=0.05 is recipe,
    steps, and what may end a stage before. Their steps are the run's."""
    set: tuple[str, ...] = ()
    """Change one part of the recipe: path=value, e.g. terms.0.divergence.teacher_weight=0.3. Repeatable."""
    verifier: Literal["strict", "lenient", "last_number", "crisp"] | None = None
    """Which marks count as an answer: strict is boxed, `Answer:`, #### and <answer>; lenient adds the phrases models
    use unasked; last_number adds the last number where nothing is marked; crisp looks in two places, as that paper's
    grader does. Not given: last_number for generated sums, else strict."""

    sandbox: Literal["auto", "bwrap", "landlock", "external", "unsafe"] = "auto"
    """Where programs of problems with tests run: auto is the strongest isolation that works; external says that all of
    this runs inside an isolation of your own; unsafe is none at all and never chosen by itself."""

    steps: int | None = None
    """Optimizer steps; if not given 20, or what the recipe was set to for the model. Also --max-steps."""
    minutes: float | None = None
    """Stop training after this time, if the steps are not done before; evaluations come on top."""
    train_tokens: int | None = None
    """Stop training once this many completion tokens have been learnt from: equal budgets for unlike methods."""
    batch: int | None = None
    """Problems a step."""
    group: int | None = None
    """Rollouts a problem. Also --num-generations."""
    max_new_tokens: int | None = None
    """Tokens a rollout may have. Also --max-completion-length."""
    temperature: float | None = None
    """Sampling temperature of the rollouts; both roles are compared at it."""
    top_p: float | None = None
    """Nucleus sampling of the rollouts."""
    lr: float | None = None
    """Learning rate. Also --learning-rate."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises from 0."""
    weight_decay: float | None = None
    """AdamW's weight decay."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""
    micro_tokens: int | None = None
    """Tokens scored at once: memory against speed, never the result. Without it, what fits."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    seed: int = 0
    """Every random draw depends on it."""

    eval_problems: int = 64
    """Held-out problems to evaluate on; 0 evaluates nothing."""
    eval_tokens: int | None = None
    """Tokens an evaluated completion may have; if not given what the recipe was set to, or as many as a rollout."""
    eval_every: int = 0
    """Evaluate every N steps; 0 only before and after."""

    name: str | None = None
    """The run's directory below --output; made up if not given. Also --run-name."""
    output: str = "runs"
    """Where run directories lie."""
    resume: bool = False
    """Go on from the newest sound checkpoint of the run --name, with its stored configuration."""
    fork: str | None = None
    """Start a new run from the weights of this run directory."""
    fresh: bool = False
    """If the name is taken, move the old run aside; nothing is deleted."""
    save_every: int = 50
    """Write a checkpoint every N steps, and at the end."""
    keep: int = 2
    """Checkpoints kept."""
    track: Literal["none", "trackio", "wandb", "tensorboard"] = "none"
    """Where numbers go beside the run directory. Also --report-to."""
    price_per_hour: float | None = None
    """What an hour of this machine costs, in any currency: the accounts then say what the run did."""
    watts: float | None = None
    """What this machine draws: the accounts then say kilowatt hours."""
    progress: Literal["auto", "live", "plain", "json", "quiet"] = "auto"
    """How progress is shown; auto is live on a wide terminal, else plain."""
    dry_run: bool = False
    """Check everything up to the first step, show both prompts and the estimates, write nothing."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises UsageError with the flag's name."""
        for name, (low, high, words) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{flag(name)} {value} is out of range. It is {words}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                words = nearest(str(value), filter(None, choices))
                raise UsageError(f"{flag(name)} {value!r} is not one of its values. {words}")
        if self.adapter is not None:
            parse_adapter(self.adapter)
        self._check_directories()

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses of `server`."""
        return tuple(url for part in (self.server or "").split(",") if (url := part.strip()))

    def _check_directories(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", self.name):
            raise UsageError(
                f"--name {self.name!r} cannot be a run's name. It has up to 100 letters, digits, underscores, dots and "
                f"dashes, a letter or digit first. Try --name {_safe_name(self.name)}"
            )
        asked = [flag(name) for name in ("resume", "fresh") if getattr(self, name)]
        # A resumed run was perhaps started by --fork: it still has the same initial weights.
        asked += ["--fork"] if self.fork is not None and not self.resume else []
        if len(asked) > 1:
            raise UsageError(
                f"{' and '.join(asked)} contradict each other. --resume goes on with a run, --fork starts another from "
                f"its weights, --fresh starts over. Give one of them."
            )


_COUNT = (1, 10**12, "a whole number from 1 on")
_FROM_ZERO = (0, 10**12, "a whole number from 0 on")
_POSITIVE = (1e-12, 1e12, "a positive number")
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(("limit", "max_prompt_tokens", "batch", "group", "max_new_tokens", "micro_tokens"), _COUNT),
    **dict.fromkeys(("eval_tokens", "save_every", "keep", "train_tokens"), _COUNT),
    **dict.fromkeys(("steps", "warmup_steps", "eval_problems", "eval_every", "ahead"), _FROM_ZERO),
    **dict.fromkeys(("minutes", "temperature", "price_per_hour", "watts"), _POSITIVE),
    "max_grad_norm": (1e-12, math.inf, "a positive number; inf clips nothing"),
    "lr": (0.0, 1.0, "a number from 0 to 1; papers here use 1e-6 to 2e-4"),
    "top_p": (1e-6, 1.0, "a number above 0 and up to 1; 1 cuts nothing"),
    "weight_decay": (0.0, 1e3, "a number from 0 on"),
    "seed": (0, 2**63 - 1, "a whole number from 0 on"),
}

HINTS: dict[str, Any] = typing.get_type_hints(RunConfig)
"""Field -> type."""


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, None among them where it is optional; () for other types."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    return (*words, None) if words and type(None) in kinds else tuple(words)


_CHOICES = {name: choices for name, hint in HINTS.items() if (choices := _choices(hint))}


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Plain JSON values, every field: what `run.json` stores under `config`."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:100] or "run-1"
