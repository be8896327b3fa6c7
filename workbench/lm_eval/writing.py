"""Write the folder of a task: `NAME.yaml`, its problems, and the code that judges."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import UsageError
from workbench.planning import Plan
from workbench.records import Case


def write_task(planned: Plan, run: str, folder: Path, ends: Sequence[str]) -> str:
    """The held-out problems as the student is asked them, greedily; returns the task's name.

    `ends` are the texts at which a completion ends. Raises UsageError for a run whose held-out problems no text judges,
    or whose student sees more than one user turn.
    """
    problems = [p for p in planned.held_out if p.answer is not None and not p.tests]
    if not problems:
        raise UsageError(
            "--lm-eval: nothing held out has an answer to compare with. Programs are judged in a jail, which a task of "
            "lm-eval does not have. Use python -m workbench.evaluate."
        )
    rows = []
    for problem in problems:
        chat = planned.recipe.student(Case(problem))
        if [turn["role"] for turn in chat] != ["user"]:
            raise UsageError(
                f"--lm-eval: the student of recipe {planned.recipe.name} sees {len(chat)} turns. A task asks one "
                "question. Use python -m workbench.evaluate."
            )
        rows.append({"id": problem.id, "question": chat[0]["content"], "answer": problem.answer})
    name = "opsd_" + re.sub(r"[^a-z0-9_]+", "_", run.lower())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("utils.py"), folder / "utils.py")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "problems.jsonl").write_text(lines, encoding="utf-8")
    (folder / f"{name}.yaml").write_text(_yaml(planned, name, ends), encoding="utf-8")
    return name


def _yaml(planned: Plan, name: str, ends: Sequence[str]) -> str:
    generation = {"do_sample": False, "max_gen_toks": planned.eval_tokens, "until": list(ends)}
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("correct", "judged")]
    lines = {
        "task": name,
        "dataset_path": name,
        "metadata": {"profile": planned.verifier, "version": 1},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": generation,
        "metric_list": metrics,
    }
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
    return text + "custom_dataset: !function utils.dataset\nprocess_results: !function utils.process_results\n"
