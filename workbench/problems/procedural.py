r"""Generated problems with worked solutions: chains of sums (no dependency), and reasoning-gym families (an extra).

A sum is near the reach of a small model and its answer token carries the signal, so one can see whether
privileged knowledge transfers. The solution writes one partial sum a step.
"""

from __future__ import annotations

import difflib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.errors import InputError, UsageError
from workbench.problems.wording import normalised
from workbench.records import Problem

BRIEF = r"What is {sum}? Put the final answer in \boxed{}."
STEP_BY_STEP = r"What is {sum}? Think step by step and put the final answer in \boxed{}."

_DEFAULT_TRAIN = 512
_ENUMERABLE = 200_000
"""Up to this many questions the space is listed and shuffled; above it drawn, where repeats are rare."""


@dataclass(frozen=True)
class Sums:
    r"""Sums of `terms` whole numbers from `minimum` to `maximum`; the default is the embedded demonstration.

    `wording` holds `{sum}`. Two orders of the same numbers are two questions, but never on both sides of the
    split: knowing 17 + 8 is knowing 8 + 17.
    """

    terms: int = 2
    maximum: int = 30
    minimum: int = 1
    wording: str = BRIEF

    def __post_init__(self) -> None:
        """Refuse what makes no sum. Raises UsageError."""
        if self.terms < 2 or not 0 <= self.minimum <= self.maximum:
            raise UsageError(f"{self!r} is no sum. Give terms >= 2 and 0 <= minimum <= maximum.")
        if "{sum}" not in self.wording:
            raise UsageError(f"the wording {self.wording!r} does not show the sum. Put {{sum}} into it.")

    @property
    def n_questions(self) -> int:
        """How many distinct questions exist, each order of the same numbers counted."""
        return int((self.maximum - self.minimum + 1) ** self.terms)

    @property
    def n_sets(self) -> int:
        """How many exist that are no reordering of one another."""
        return math.comb(self.maximum - self.minimum + self.terms, self.terms)

    def problems(
        self, n_train: int | None, n_held_out: int, seed: int = 0
    ) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
        """Train and held-out problems; the held-out ones do not depend on `n_train`, and train grows at its end.

        `n_train` None: as many as there are, up to 512. Raises UsageError where fewer exist, saying how many.
        """
        held_out: dict[tuple[int, ...], tuple[int, ...]] = {}
        if n_held_out > self.n_sets:
            raise UsageError(
                f"{n_held_out} held-out sums of {self._span()} asked, but only {self.n_sets} exist that are no "
                "reordering of one another. Raise terms or maximum, or ask for fewer."
            )
        draws = self._draws(f"held out {seed}")
        while len(held_out) < n_held_out:
            numbers = next(draws)
            held_out.setdefault(tuple(sorted(numbers)), numbers)
        left = self.n_questions - sum(_n_orders(numbers) for numbers in held_out)
        n_train = min(_DEFAULT_TRAIN, left) if n_train is None else n_train
        if n_train > left:
            raise UsageError(
                f"{n_train} sums of {self._span()} asked for training, but only {self.n_questions} distinct "
                f"questions exist, {left} of them no reordering of the {n_held_out} held out. "
                "Raise terms or maximum, or ask for fewer."
            )
        draws = self._draws(f"train {seed}")
        train: dict[tuple[int, ...], None] = {}
        while len(train) < n_train:
            numbers = next(draws)
            if tuple(sorted(numbers)) not in held_out:
                train.setdefault(numbers)
        return tuple(map(self._problem, train)), tuple(map(self._problem, held_out.values()))

    def _draws(self, seed: str) -> Iterator[tuple[int, ...]]:
        generator = random.Random(f"sums {seed}")
        span = range(self.minimum, self.maximum + 1)
        if self.n_questions <= _ENUMERABLE:
            listed = list(itertools.product(span, repeat=self.terms))
            generator.shuffle(listed)
            yield from listed
        while True:
            yield tuple(generator.choice(span) for _ in range(self.terms))

    def _problem(self, numbers: tuple[int, ...]) -> Problem:
        partial = list(itertools.accumulate(numbers))
        steps = list(zip(partial[:-1], numbers[1:], partial[1:], strict=True))
        facts = " ".join(f"{so_far} and {number} together make {total}." for so_far, number, total in steps)
        solution = "\n".join(f"{so_far} + {number} = {total}." for so_far, number, total in steps)
        return Problem(
            id="sums-" + "-".join(map(str, numbers)),
            question=self.wording.replace("{sum}", " + ".join(map(str, numbers))),
            answer=str(partial[-1]),
            solution=solution,
            document=f"From a table of sums: {facts}",
            demonstration=solution,
            difficulty=f"{self.terms} terms, {len(str(max(numbers)))} digits",
        )

    def _span(self) -> str:
        return f"{self.terms} terms from {self.minimum} to {self.maximum}"


def reasoning_gym_problems(family: str, n: int, seed: int = 0) -> tuple[list[Problem], int]:
    """Up to `n` problems of a reasoning-gym family, and how many repeats of a question were left out.

    The worked solution is `metadata.answer_cot` where the family writes one. Raises InputError where the package
    is absent or has no such family.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise InputError(
            f"problems '{family}' come from reasoning-gym, which is not installed. "
            'It needs a C compiler: pip install ".[procedural]". Or use the built-in sums.'
        ) from error
    if family not in DATASETS:
        # Over a hundred names: the nearest few say more than all.
        close = difflib.get_close_matches(family, [*DATASETS, "sums"], n=5, cutoff=0.3)
        raise InputError(
            f"no file, Hub data set or reasoning-gym family is called '{family}'. "
            f"Nearest: {', '.join(close) or 'none'}. A file needs its ending, a Hub id its owner (owner/name)."
        )
    found: dict[str, Problem] = {}
    n_seen = 0
    for entry in reasoning_gym.create_dataset(family, size=n, seed=seed):
        n_seen += 1
        metadata = entry.get("metadata") or {}
        solution = metadata.get("answer_cot")
        problem = Problem(
            id=f"{family}-{seed}-{n_seen - 1:05d}",
            question=str(entry["question"]),
            answer=str(entry["answer"]),
            solution=solution if isinstance(solution, str) else None,
        )
        found.setdefault(normalised(problem.question), problem)
    return list(found.values()), n_seen - len(found)


def _n_orders(numbers: tuple[int, ...]) -> int:
    orders = math.factorial(len(numbers))
    for count in Counter(numbers).values():
        orders //= math.factorial(count)
    return orders
