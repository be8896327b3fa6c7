"""Rows of the public code sets as rows of ours: question, solution, tests. Nothing of a row is ever run or unpickled.

| layout | known by | tests become |
|---|---|---|
| HumanEval, HumanEval+ | `entry_point`, `test`, `prompt` | a visible check, and a preamble from the prompt |
| MBPP (full, sanitized), MBPP+ | `test_list` | visible checks; `challenge_test_list` and `test` hidden |
| APPS | `input_output` | stdin, or calls where it names `fn_name`; the first three visible |
| LiveCodeBench | `public_test_cases` | stdin or calls of `Solution`; public ones visible, private ones hidden |

Kept from each set is what its own harness compares: MBPP's assertions stay assertions, in which a list is no tuple.
APPS writes an expected value as a list of one; where every expected value is one, it is taken out. A `document` that
somebody added to the rows stays with them.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verifiers.programs.cases import TestsError, check_tests

Row = Mapping[str, Any]

VISIBLE = 3
"""How many tests of a set that marks none are shown to a model that failed them."""

LARGEST = 1 << 28
"""Bytes that compressed tests may unpack to."""


def layout_of(names: Sequence[str]) -> str | None:
    """The public layout that rows with these columns have; None where they have none of them."""
    present = set(names)
    return next((layout for layout, needs in _KNOWN_BY.items() if needs <= present), None)


def adapted(row: Row, layout: str) -> dict[str, Any]:
    """The row with our columns. Raises TestsError where its tests cannot be read."""
    try:
        ours = _ADAPTERS[layout](row)
    except (KeyError, TypeError, ValueError, IndexError, SyntaxError, RecursionError) as error:
        if isinstance(error, TestsError):
            raise
        raise TestsError(
            f"The row is not as {layout} publishes it ({type(error).__name__}: {str(error)[:80]})."
        ) from error
    return ours | ({"document": row["document"]} if row.get("document") else {})


def _humaneval(row: Row) -> dict[str, Any]:
    prompt, name = str(row["prompt"]), str(row["entry_point"])
    test = {"check": row["test"], "call": name, "prompt": prompt, "preamble": _before(prompt, name)}
    question = f"Complete this Python function. Give the whole function in a block of Python.\n\n```python\n{prompt}```"
    solution = prompt + str(row["canonical_solution"]) if row.get("canonical_solution") else None
    return _ours(str(row["task_id"]), question, solution, [_check(test)])


def _before(prompt: str, name: str) -> str:
    """Imports and helpers of a prompt: what stands before the function it asks for."""
    at = prompt.rfind(f"def {name}(")
    return prompt[:at].rstrip() + "\n" if at > 0 and prompt[:at].strip() else ""


def _mbpp(row: Row) -> dict[str, Any]:
    asserts = [str(text) for text in row["test_list"]]
    name = _tested(asserts)
    setup = "\n".join([*(str(line) for line in row.get("test_imports") or ()), str(row.get("test_setup_code") or "")])
    hidden = [str(text) for text in row.get("challenge_test_list") or ()]
    hidden += [str(row["test"])] if row.get("test") else []
    tests = [_check({"check": _wrapped(text, name, setup), "call": name}) for text in asserts]
    tests += [_check({"check": _wrapped(text, name, setup), "call": name, "hidden": True}) for text in hidden]
    asked = row.get("prompt") or row["text"]
    question = f"{asked}\n\nYour program must pass these tests:\n\n```python\n" + "\n".join(asserts) + "\n```"
    return _ours(f"mbpp-{row['task_id']}", question, row.get("code"), tests)


def _tested(asserts: Sequence[str]) -> str:
    """The function that the first assertion calls: the first call that is no builtin, module's or method's."""
    for node in ast.walk(ast.parse(asserts[0])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in _WRAPPERS:
            return node.func.id
    raise TestsError("The first assertion calls no function by its name.")


_WRAPPERS = frozenset(
    {"set", "sorted", "list", "tuple", "dict", "len", "round", "abs", "str", "int", "float", "sum", "all", "isclose"}
)


def _wrapped(text: str, name: str, setup: str) -> str:
    """Assertions as `check(candidate)`, under the function's own name; written anew, so that indentation is sound."""
    body = ast.unparse(ast.parse(text)).split("\n")
    return "\n".join([setup, "def check(candidate):", f"    {name} = candidate", *(f"    {line}" for line in body)])


def _apps(row: Row) -> dict[str, Any]:
    pairs = _json(row["input_output"])
    inputs, outputs = list(pairs["inputs"]), list(pairs["outputs"])
    if len(inputs) != len(outputs):
        raise TestsError(f"There are {len(inputs)} inputs and {len(outputs)} outputs.")
    starter = str(row.get("starter_code") or "")
    if name := pairs.get("fn_name"):
        boxed = all(isinstance(value, list) and len(value) == 1 for value in outputs)
        call = f"Solution.{name}" if "class Solution" in starter else str(name)
        tests = [
            {"call": call, "args": args, "expected": value[0] if boxed else value, "hidden": at >= VISIBLE}
            for at, (args, value) in enumerate(zip(inputs, outputs, strict=True))
        ]
    else:
        tests = [
            {"stdin": _joined(given), "stdout": _joined(value), "hidden": at >= VISIBLE}
            for at, (given, value) in enumerate(zip(inputs, outputs, strict=True))
        ]
    solutions = _json(row["solutions"]) if row.get("solutions") else []
    question = _with_starter(str(row["question"]), starter, bool(name))
    number = row.get("problem_id", row.get("id"))
    ours = _ours(f"apps-{number}", question, solutions[0] if solutions else None, tests)
    return ours | ({"difficulty": row["difficulty"]} if row.get("difficulty") else {})


def _livecodebench(row: Row) -> dict[str, Any]:
    public = _json(row["public_test_cases"])
    private = _private(row.get("private_test_cases") or "[]")
    name = (_json(row.get("metadata") or "{}")).get("func_name")
    marked = [(case, False) for case in public] + [(case, True) for case in private]
    tests = [_livecodebench_test(case, name, hidden) for case, hidden in marked]
    starter = str(row.get("starter_code") or "")
    question = _with_starter(str(row["question_content"]), starter, bool(name))
    ours = _ours(str(row["question_id"]), question, None, tests)
    return ours | ({"difficulty": row["difficulty"]} if row.get("difficulty") else {})


def _livecodebench_test(case: Row, name: str | None, hidden: bool) -> dict[str, Any]:
    if case["testtype"] == "stdin":
        return {"stdin": case["input"], "stdout": case["output"], "hidden": hidden}
    if case["testtype"] != "functional" or not name:
        raise TestsError(f"A test is of type {case['testtype']!r}, or its function has no name.")
    args = [json.loads(line) for line in str(case["input"]).split("\n") if line.strip()]
    return {"call": f"Solution.{name}", "args": args, "expected": json.loads(case["output"]), "hidden": hidden}


def _private(text: Any) -> Any:
    """Private tests: JSON, or base64 of zlib of a pickled JSON text, whose text is read without unpickling."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(text, validate=True), LARGEST)
    except (binascii.Error, zlib.error) as error:
        raise TestsError("Private tests are neither JSON nor compressed JSON.") from error
    if unpacker.unconsumed_tail:
        raise TestsError(f"Private tests unpack to more than {LARGEST} bytes.")
    import pickletools  # imported here: only this layout needs it

    texts = [arg for opcode, arg, _ in pickletools.genops(raw) if "UNICODE" in opcode.name]
    if len(texts) != 1:
        raise TestsError("Private tests hold something else than one text.")
    return json.loads(str(texts[0]))


def _with_starter(question: str, starter: str, calls: bool) -> str:
    if calls and starter.strip():
        return f"{question}\n\nStart from this code:\n\n```python\n{starter.rstrip()}\n```"
    how = "Write the function." if calls else "Read from standard input and write to standard output."
    return f"{question}\n\n{how} Give the program in a block of Python."


def _joined(value: Any) -> str:
    """APPS gives an input as a text, or as its lines."""
    return "\n".join(map(str, value)) + "\n" if isinstance(value, list) else str(value)


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _check(test: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in test.items() if value != ""}


def _ours(name: str, question: str, solution: Any, tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A reference program becomes a solution as a model would write it: in a block."""
    column = [json.dumps(test) for test in tests]
    if refusal := check_tests(column):
        raise TestsError(refusal)
    row: dict[str, Any] = {"id": name, "question": question, "tests": column}
    if isinstance(solution, str) and solution.strip():
        row["solution"] = "```python\n" + solution.replace("\r\n", "\n").strip("\n") + "\n```"
    return row


_KNOWN_BY: Mapping[str, frozenset[str]] = {
    "HumanEval": frozenset({"task_id", "prompt", "entry_point", "test"}),
    "MBPP": frozenset({"task_id", "test_list"}),
    "APPS": frozenset({"question", "input_output"}),
    "LiveCodeBench": frozenset({"question_content", "public_test_cases"}),
}

_ADAPTERS: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "HumanEval": _humaneval,
    "MBPP": _mbpp,
    "APPS": _apps,
    "LiveCodeBench": _livecodebench,
}
