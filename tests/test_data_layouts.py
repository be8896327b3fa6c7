"""Data sets as other trainers lay them out: each is read as it is meant, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.errors import InputError
from workbench.problems import load

USER = {"role": "user", "content": "What is 1 + 2?"}
REPLY = {"role": "assistant", "content": "1 + 2 = 3."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def read(tmp_path: Path):
    def to(*rows: dict, columns: dict[str, str] | None = None):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load(str(path), columns=columns)

    return to


@pytest.mark.parametrize(
    ("row", "solution"),
    [
        ({"prompt": "What is 1 + 2?"}, None),
        ({"prompt": [USER]}, None),
        ({"prompt": [SYSTEM, USER]}, None),
        ({"prompt": "What is 1 + 2?", "completion": "1 + 2 = 3."}, "1 + 2 = 3."),
        ({"prompt": [USER], "completion": [REPLY]}, "1 + 2 = 3."),
        ({"messages": [SYSTEM, USER, REPLY]}, "1 + 2 = 3."),
        ({"messages": [USER, REPLY, USER]}, None),
        ({"prompt": [USER], "privileged_context": "It is 3."}, "It is 3."),
        ({"prompt": [USER], "privileged_context": [SYSTEM, USER, REPLY]}, "Be brief.\n\nWhat is 1 + 2?\n\n1 + 2 = 3."),
        ({"messages": [USER, REPLY], "privileged_context": "It is 3."}, "It is 3."),
        ({"prompt": "What is 1 + 2?", "completion": "a", "privileged_context": "It is 3."}, "It is 3."),
        ({"prompt": "What is 1 + 2?", "chosen": "3", "rejected": "4"}, None),
        ({"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY]}, None),
        ({"prompt": "What is 1 + 2?", "completions": ["1 + 2", "= 3"], "labels": [True, False]}, None),
    ],
)
def test_a_layout_that_is_read(read, row, solution) -> None:
    found = read(row)
    (problem,) = found.train
    assert (problem.question, problem.solution) == ("What is 1 + 2?", solution)
    used = {"prompt", "messages", "privileged_context"} | ({"completion"} if solution == "1 + 2 = 3." else set())
    for name in set(row) - used:
        assert name in found.mapping.partition("not used: ")[2], "what is not used is said"


def test_an_answer_is_found_in_a_completion(read) -> None:
    (problem,) = read({"prompt": [USER], "completion": [{"role": "assistant", "content": "So.\n#### 3"}]}).train
    assert (problem.answer, problem.solution) == ("3", "So.\n#### 3")


def test_the_better_of_a_pair_is_shown_when_asked_for(read) -> None:
    row = {"prompt": [USER], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "4"}]}
    (problem,) = read(row, columns={"solution": "chosen"}).train
    assert problem.solution == "1 + 2 = 3."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "What is 1 + 2? 3"}, "A text column does not say where its question ends."),
        ({"chosen": "q 3", "rejected": "q 4"}, "Preference pairs without a prompt: question and reply are one text."),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY]}, "Preference pairs without a prompt"),
        ({"prompt": "q", "completion": "4", "label": False}, "unpaired preferences, of which some are bad."),
    ],
)
def test_a_layout_that_is_refused(read, row, reason) -> None:
    with pytest.raises(InputError, match="--columns") as caught:
        read(row)
    assert reason in str(caught.value)


def test_unpaired_preferences_give_their_prompts_when_asked_for(read) -> None:
    (problem,) = read({"prompt": "q", "completion": "4", "label": False}, columns={"solution": ""}).train
    assert (problem.question, problem.solution) == ("q", None)


def test_a_question_with_an_image_is_left_out_and_counted(read) -> None:
    image = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]}
    found = read({"prompt": [USER]}, {"prompt": [image]})
    assert len(found.train) == 1
    assert dict(found.dropped) == {"not text alone (an image, audio or a tool)": 1}


def test_a_column_that_is_told_empty_stays_empty(read) -> None:
    (problem,) = read({"messages": [USER, REPLY]}, columns={"solution": ""}).train
    assert problem.solution is None


def test_parquet_and_the_hub_give_what_a_file_gives(tmp_path: Path, read, monkeypatch) -> None:
    """A data set of the `datasets` library itself, with nested messages, in place of one of the Hub."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": [USER], "privileged_context": f"It is {i}.", "id": i} for i in range(3)]
    for i, row in enumerate(rows):
        row["prompt"] = [{"role": "user", "content": f"What is {i}?"}]
    expected = [(p.question, p.solution) for p in read(*rows).train]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert [(p.question, p.solution) for p in load(str(path)).train] == expected
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    really = datasets.load_dataset

    def local(name, config=None, split=None):
        assert name == "me/data"
        return really("parquet", data_files={"train": str(path)}, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert [(p.question, p.solution) for p in load("me/data").train] == expected


def test_offline_a_data_set_that_is_not_here_is_said_to_be_so(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="is not in the local cache and HF_HUB_OFFLINE is set") as caught:
        load("nobody/has-this-data-set")
    assert caught.value.exit_code == 3
