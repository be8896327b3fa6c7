"""TRL's own trainer, called: one step of `SDFTTrainer` at a time. Runs in the peers' environment."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
MANY = 1 << 16


class Turns(TrainerCallback):
    """Stops the trainer before every step until a step is asked for, and notes what it wrote and lost."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.tokens: list[list[int]] = []
        self.failed: BaseException | None = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.done.release()
        self.go.acquire()

    def on_self_distillation_batch_prepared(self, completion_ids=None, **kwargs):
        self.tokens = completion_ids.tolist()


class Step:
    """Rollouts, teacher, student, update: whole logits and JSD, a frozen teacher, everything trained.

    The most probable token is always drawn and the learning rate is 0, so every step does the same work.
    """

    def __init__(self, work: str, tokens: int, checkpointing: bool, group: int = 1) -> None:
        given = json.loads(Path(work).read_text())
        self.turns, self.stop = Turns(), set(given["stop"])
        count = len(given["prompts"]) * group
        settings = SDFTConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=count,
            gradient_accumulation_steps=1,
            gradient_checkpointing=checkpointing,
            num_generations=group,
            max_prompt_length=None,
            max_completion_length=tokens,
            temperature=1.0,
            top_k=1,
            distillation_mode="full_logits",
            distillation_alpha=0.5,
            distillation_is_clip=None,
            teacher_model_kind="base",
            learning_rate=0.0,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            max_steps=MANY,
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = {"prompt": given["prompts"], "privileged_context": given["privileged"]}
        tokenizer = AutoTokenizer.from_pretrained(given["model"], padding_side="left")
        self.trainer = SDFTTrainer(
            AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32),
            args=settings,
            train_dataset=Dataset.from_dict(data),
            processing_class=tokenizer,
            callbacks=[self.turns],
        )
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()
        self._wait()

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self.turns.failed = error
            self.turns.done.release()
            raise

    def _wait(self) -> None:
        self.turns.done.acquire()
        if self.turns.failed is not None:
            raise self.turns.failed

    def run(self) -> None:
        self.turns.go.release()
        self._wait()

    def facts(self) -> dict[str, Any]:
        losses = self.trainer._metrics["train"]["self_distillation/distillation_loss"]
        return {"loss": losses[-1] if losses else None, "tokens": [self._cut(row) for row in self.turns.tokens]}

    def _cut(self, row: list[int]) -> list[int]:
        ends = [i for i, token in enumerate(row) if token in self.stop]
        return row[: ends[0] + 1] if ends else row
