"""Where problems come from: files, the Hub, generators; and how sets of them are split and paired.

Promised: a problem is what the data says, or it is refused or counted, never guessed; the same source and seed give
the same problems; train and held-out sets share no question. Never here: a prompt, a verifier, a tokenizer, a
model; `datasets`, `pyarrow` and `reasoning_gym` are imported only where a source needs them.
"""

from workbench.problems.columns import CANDIDATES, parse_columns
from workbench.problems.loading import ProblemSet, check_needs, graded, load
from workbench.problems.pairing import pair_with_others, split_train_held_out
from workbench.problems.procedural import BRIEF, STEP_BY_STEP, Sums
from workbench.problems.wording import normalised, same_answer

__all__ = [
    "BRIEF",
    "CANDIDATES",
    "STEP_BY_STEP",
    "ProblemSet",
    "Sums",
    "check_needs",
    "graded",
    "load",
    "normalised",
    "pair_with_others",
    "parse_columns",
    "same_answer",
    "split_train_held_out",
]
