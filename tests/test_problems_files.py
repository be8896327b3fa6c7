"""Problems from files, the Hub and reasoning-gym; every message about data, with its exit code."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import InputError, UsageError
from workbench.problems import check_needs, graded, load, parse_columns
from workbench.problems.wording import exact
from workbench.records import Problem


@pytest.fixture
def write(tmp_path):
    """Writes rows, text or bytes to a file and gives its path as text."""

    def to(name: str, content) -> str:
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return str(path)

    return to


def refused(source, *, exit_code=3, **options) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        load(source, **options)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


ROWS = [{"question": f"What is {n} + 1?", "answer": n + 1, "solution": f"{n} + 1 = {n + 1}."} for n in range(5)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.json.gz", "d.parquet"])
def test_the_same_rows_from_every_kind_of_file(write, tmp_path, name):
    if name.endswith(".parquet"):
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        source = str(tmp_path / name)
        pq.write_table(pa.Table.from_pylist(ROWS), source)
    else:
        source = write(name, json.dumps(ROWS) if ".json" in name and "jsonl" not in name else ROWS)
    found = load(source)
    assert [(p.question, p.answer, p.solution) for p in found.train] == [
        (row["question"], str(row["answer"]), row["solution"]) for row in ROWS
    ]
    assert found.train[3].id == "d-00003"
    assert found.held_out == ()
    assert found.sha256 == load(source).sha256 == load(write("d.jsonl", ROWS)).sha256


def test_a_folder_with_one_file_and_a_json_with_splits(write, tmp_path):
    write("notes.txt", "x")
    source = write("only.jsonl", ROWS)
    assert load(str(tmp_path)).train == load(source).train
    splits = write("splits.json", json.dumps({"train": ROWS[:3], "test": ROWS[3:], "version": 1}))
    assert len(load(splits, split="test").train) == 2
    assert "holds train, test. Choose one with --split." in refused(splits)
    assert "no split 'tset'. Did you mean 'test'" in refused(splits, split="tset", exit_code=2)
    assert "Name one file" in refused(str(tmp_path))
    assert "has no splits" in refused(source, split="train", exit_code=2)


def test_a_single_chat_in_a_json_file_is_one_problem(write):
    row = {"messages": [{"role": "user", "content": "q"}], "answer": "1"}
    assert load(write("one.json", json.dumps(row))).train[0].question == "q"
    assert len(load(write("lines.json", ROWS)).train) == 5


def test_bom_crlf_blank_lines_and_nul(write):
    lines = [json.dumps({"question": f"q{n}\u2028\0", "answer": str(n)}, ensure_ascii=False) for n in range(3)]
    lines = [line.replace("\0", "\\u0000") for line in lines]
    found = load(write("w.jsonl", b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n"))
    assert [p.question for p in found.train] == [f"q{n}\u2028\0" for n in range(3)]
    marked = load(write("w.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()))
    assert marked.train == load(write("w.jsonl", ROWS)).train


def test_a_huge_line_and_a_lone_surrogate(write):
    huge = json.dumps({"question": "x" * 3_000_000})
    found = load(write("h.jsonl", huge + '\n{"question": "\\ud800", "answer": "2"}'))
    assert len(found.train[0].question) == 3_000_000
    assert found.dropped == (("text that is not Unicode (a lone surrogate)", 1),)
    assert "1 left out: text that is not Unicode" in str(found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"question": "q"}\n{"question": "q', "d.jsonl line 2: not JSON (unterminated string, column 14)"),
        (b'{"question": "q"}\n\n{"question" 1}', "d.jsonl line 3: not JSON (expecting ':' delimiter, column 13)"),
        (b"[1, 2]", "d.jsonl line 1: a list, but a problem is an object"),
        (b"null", "d.jsonl line 1: null, but"),
        (b'\n"q"', "d.jsonl line 2: a text, but"),
        (b'{"question": "caf\xe9"}', "d.jsonl line 1: not UTF-8 (byte 0xe9, column 18)"),
        (b"\xff\xfe{\x00}\x00", "d.jsonl line 1: not UTF-8 (byte 0xff, column 1)"),
        (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}", "d.jsonl line 1: not usable JSON (Exceeds the limit"),
        (b'{"question": ' + b"[" * 100_000 + b"}", "d.jsonl line 1: not usable JSON (maximum recursion"),
        (b"", "d.jsonl is empty"),
        (b"\n \n\xef\xbb\xbf", "d.jsonl line 3: not JSON"),
        (b"\xef\xbb\xbf\n", "d.jsonl is empty"),
        (b'{"a": 1, "b": 2}', "d.jsonl has no question: it has a, b, and none of problem, question, prompt"),
        (b'{"question": null}', "d.jsonl has no question: it has nothing"),
        (b'{"question": " ", "answer": 1}', "no usable problem in d.jsonl (1: no question)"),
        (b'{"question": {"a": 1, "b": 2}}', "d.jsonl line 1, column question: a nested value where a text is expected. "
         "Map a part of it with a dot: it holds a, b."),
        (b'{"question": "q", "solution": ["a", "b"]}', "column solution: a nested value"),
        (b'{"question": "q", "chat_template_kwargs": {"a": 1}}', "chat_template_kwargs must hold names with texts"),
        (b'{"id": 1, "question": "q"}\n{"id": "1", "question": "r"}', "id '1' stands in line 1 and line 2, but"),
        (b'{"question": "q", "answer": 1}\n{"question": " q", "answer": 2}',
         "d.jsonl: 'd-00000' and 'd-00001' ask the same question, but answer 1 and 2. One is wrong."),
    ],
)  # fmt: skip
def test_broken_files_say_where_and_why(write, content, says):
    message = refused(write("d.jsonl", content))
    assert says in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.json", b"[1, 2", "d.json: not JSON (expecting ',' delimiter, column 6)"),
        ("d.json", b"[\n{},\n", "d.json: not JSON (expecting value, line 3, column 1)"),
        ("d.json", b"3", "d.json holds a number. Give a list of objects."),
        ("d.json", b"[3]", "d.json row 0: a number, but"),
        ("d.json", b"[]", "d.json is empty"),
        ("d.jsonl.gz", None, "d.jsonl.gz cannot be read"),
        ("d.parquet", b"PAR1 no", "d.parquet is no readable parquet file"),
        ("d.csv", b"a,b", "d.csv is of no known kind. Give one of .jsonl, .jsonl.gz, .json, .json.gz, .parquet."),
    ],
)
def test_other_broken_files(write, tmp_path, name, content, says):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    source = str(tmp_path / name) if content is None else write(name, content)
    if content is None:
        Path(source).write_bytes(gzip.compress(b'{"question": "q"}' * 100)[:-12])
    assert says in refused(source)


def test_missing_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    assert refused("./x").startswith(
        f"no folder ./x (looked in {here / 'x'}; it starts with ./ so the Hub was not tried). Check the path."
    )
    (here / "data.jsonl").write_text("{}")
    message = refused("data.json")
    where = f"looked in {here / 'data.json'}; it ends in .json so the Hub was not tried"
    assert message.startswith(f"no file data.json ({where})")
    assert "Beside it: data.jsonl." in message
    assert "it starts with / so the Hub" in refused("/no/such/place.jsonl")
    assert "so the Hub was not tried" in refused("./" + "x" * 5000)
    assert "so the Hub was not tried" in refused("~nobody-of-this-name/x.jsonl")


def test_wrong_options(write):
    source = write("d.jsonl", ROWS)
    message = refused(source, columns={"solutoin": "x"}, exit_code=2)
    assert "a problem has no solutoin. Did you mean 'solution'" in message
    message = refused(source, columns={"answer": "answr"}, exit_code=2)
    assert "d.jsonl has no answr. Did you mean 'answer'" in message
    message = refused(source, require=["solutions"], exit_code=2)
    assert "a problem has no such field. Did you mean 'solution'" in message
    assert "--limit 0 loads nothing" in refused(source, limit=0, exit_code=2)
    with pytest.raises(UsageError, match="--columns solution names no column"):
        parse_columns("solution")


def test_limit_require_and_repeats_are_counted(write):
    rows = [*ROWS, {"question": "bare"}, {"question": " What is 0  + 1?\n", "answer": "1.0"}]
    source = write("d.jsonl", rows)
    found = load(source, require=("solution", "answer"))
    assert len(found.train) == 5
    assert found.dropped == (("repeats an earlier question", 1), ("no solution", 1))
    assert len(load(source, limit=3).train) == 3
    assert load(source, limit=3).sha256 != load(source, limit=4).sha256
    assert str(found).splitlines()[0] == "d.jsonl: 5 train, 0 held out"
    message = refused(source, require=["document"])
    assert "no usable problem in d.jsonl (1: repeats an earlier question; 6: no document)" in message


def test_a_limit_reads_no_further(write):
    source = write("d.jsonl", b'{"question": "q"}\n{broken')
    assert len(load(source, limit=1).train) == 1


def test_questions_that_differ_by_a_superscript_are_two(write):
    rows = [{"question": "Solve x² = 4", "answer": "2"}, {"question": "Solve x2 = 4", "answer": "4"}]
    assert len(load(write("d.jsonl", rows)).train) == 2


def test_needs_of_a_recipe(write):
    bare = load(write("data.jsonl", [{"id": 1, "question": "q", "answer": "1"}]))
    with pytest.raises(InputError) as caught:
        check_needs(bare, {"question", "other.solution"}, "recipe opsd shows the teacher")
    assert str(caught.value) == (
        "recipe opsd shows the teacher {solution}; data.jsonl has id, question, answer. "
        "Map one: --columns solution=COLUMN, or --recipe opsdc."
    )
    assert caught.value.exit_code == 3
    rows = [{"id": n, "question": f"q{n}", "solution": None if n in (37, 40) else "s"} for n in range(50)]
    some = load(write("some.jsonl", rows))
    with pytest.raises(InputError) as caught:
        check_needs(some, {"solution"}, "recipe opsd shows the teacher")
    assert str(caught.value) == "2 of 50 problems have no solution (first: id 37). --require solution drops them."
    check_needs(load(write("some.jsonl", rows), require=["solution"]), {"question", "solution"}, "x")


def test_golds_that_cannot_be_graded_are_left_out_and_said():
    problems = [Problem(id=f"p{n}", question=f"q{n}", answer=a) for n, a in enumerate(["5", "?", None, "?", "7"])]
    kept, reports = graded(problems, lambda answer: "no number" if answer == "?" else None)
    assert [p.id for p in kept] == ["p0", "p2", "p4"]
    assert reports == (
        "gold of 2 problems cannot be parsed (ids p1, p3): left out, not scored 0. First reason: no number",
        "1 problem without an answer (ids p2): kept, but never scored.",
    )
    assert graded(problems[:1], lambda answer: None) == ((problems[0],), ())
    many = [Problem(id=f"p{n}", question=f"q{n}", answer="?") for n in range(9)]
    assert "gold of 9 problems cannot be parsed (ids p0, p1, p2, p3, p4, ...): left out" in graded(many, str)[1][0]


# Whatever the file holds: problems, or a refusal that says so

# The files are written anew for each example; the first draw of a run pays for hypothesis reading our modules.
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
NAMES = ["problem", "question", "prompt", "messages", "answer", "solution", "id", "tests", "chat_template_kwargs", "x"]
TEXT = st.text("ab 1#\\{}\n\0\u00e9\ud800", max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["####", "\\boxed{1}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "user"]), inner),
    max_leaves=6,
)


@settings(max_examples=100, suppress_health_check=SUPPRESSED)
@given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), max_size=5))
def test_any_rows_make_problems_or_are_refused(write, rows):
    source = write("any.jsonl", rows)
    try:
        found = load(source)
    except (InputError, UsageError):
        return
    assert len(found.train) + sum(n for _, n in found.dropped) == len(rows)
    assert len({p.id for p in found.train}) == len({exact(p.question) for p in found.train}) == len(found.train)
    for problem in found.train:
        for text in (problem.question, problem.answer, problem.solution, problem.document):
            assert text is None or (text.strip() and text.encode())
    assert len(found.sha256) == 64


@settings(max_examples=100, suppress_health_check=SUPPRESSED)
@given(st.binary(max_size=60), st.sampled_from(["f.jsonl", "f.json", "f.jsonl.gz", "f.parquet"]), st.booleans())
def test_any_bytes_are_refused_or_read(write, content, name, zipped):
    source = write("tmp.jsonl", b"")
    path = Path(source).with_name(name)
    path.write_bytes(gzip.compress(content)[:-4] if zipped else content)
    with contextlib.suppress(InputError, UsageError):
        load(str(path))


# The Hub and reasoning-gym, with stand-ins for the packages


def stand_in_hub(monkeypatch, result):
    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        if isinstance(result, Exception):
            raise result
        return result

    asked: list[tuple] = []
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_hub_data_sets(monkeypatch):
    asked = stand_in_hub(monkeypatch, {"train": ROWS, "test": ROWS[:2]})
    assert len(load("openai/gsm8k:main", limit=3).train) == 3
    assert asked == [("openai/gsm8k", "main", None)]
    assert load("openai/gsm8k").train[0].id == "gsm8k-00000"
    stand_in_hub(monkeypatch, ROWS)
    assert len(load("me/data", split="test").train) == 5
    stand_in_hub(monkeypatch, {"a": ROWS, "b": ROWS})
    assert "data set 'me/data' has splits a, b. Choose one with --split." in refused("me/data")
    stand_in_hub(monkeypatch, [])
    assert "is empty" in refused("me/data")
    stand_in_hub(monkeypatch, ConnectionError("offline\nlong trace"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("me/data")
    assert message.startswith("data set 'me/data' is not in the local cache and HF_HUB_OFFLINE is set (offline).")
    assert message.endswith("--problems data.jsonl.")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    message = refused("me/data")
    assert message.startswith("data set 'me/data' could not be loaded. ConnectionError: offline. Check the name")
    assert "long trace" not in message


def test_reasoning_gym_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    message = refused("gsm_symbolic")
    assert message.startswith("problems 'gsm_symbolic' come from reasoning-gym, which is not installed.")
    assert 'pip install ".[procedural]"' in message


def test_reasoning_gym_family(monkeypatch):
    def create_dataset(name, size, seed):
        chooser = random.Random(seed)
        texts = [str(chooser.randrange(30)) for _ in range(size)]
        return [{"question": t, "answer": t, "metadata": {"answer_cot": f"It is {t}.\n#### {t}.0"}} for t in texts]

    gym = types.ModuleType("reasoning_gym")
    gym.create_dataset = create_dataset
    factory = types.ModuleType("reasoning_gym.factory")
    factory.DATASETS = {"gsm_symbolic": None, "chain_sum": None}
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    found = load("gsm_symbolic", limit=40, seed=3)
    assert len({p.question for p in found.train}) == len(found.train) < 40
    assert found.dropped == (("repeats an earlier question", 40 - len(found.train)),)
    assert found.train[0].solution.startswith("It is ")
    assert load("gsm_symbolic", limit=40, seed=3) == found
    assert "Nearest: gsm_symbolic" in refused("gsm_symbolyc")
    assert "only sums takes options" in refused("gsm_symbolic:a=1", exit_code=2)
