r"""Programs: which text of a completion is one, what its tests say, and what its writer may be told.

Promised: `pass` only if every test's value or output was compared equal in this process, never because of anything
the program said about itself; no tests never pass; a jail that fails is no verdict on the program. Never here: a
program run outside a jail, or a hidden test in a text a model may read. Public layouts are read by
`verifiers.programs.adapters`.

    >>> extract_program("Sure:\n```python\nprint(1)\n```").answer
    'print(1)\n'
"""

from verifiers.programs.behaviour import check_votes
from verifiers.programs.box import Box, Raised, Ran, Returned
from verifiers.programs.built_in import built_in
from verifiers.programs.cases import Call, Check, Stdin, Suite, TestsError, check_tests, parse_tests
from verifiers.programs.extract import extract_program
from verifiers.programs.feedback import feedback
from verifiers.programs.judging import Failure, Outcome, judge_program
from verifiers.programs.link import LEVELS, SandboxRefused, at_once, install, open_sandbox
from verifiers.programs.output import same_output
from verifiers.programs.verdicts import verify_program

__all__ = [
    "LEVELS",
    "Box",
    "Call",
    "Check",
    "Failure",
    "Outcome",
    "Raised",
    "Ran",
    "Returned",
    "SandboxRefused",
    "Stdin",
    "Suite",
    "TestsError",
    "at_once",
    "built_in",
    "check_tests",
    "check_votes",
    "extract_program",
    "feedback",
    "install",
    "judge_program",
    "open_sandbox",
    "parse_tests",
    "same_output",
    "verify_program",
]
