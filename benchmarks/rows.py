"""The rows about the loss. A row is a function that measures and says what was required and what was found."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import FLOOR, Measured, Process, Way, paired
from states import LARGE, REAL, TINY, Shape, case

OURS, TRL, LIGER, PLAIN, CHECKPOINT = "workbench", "TRL", "Liger", "plain autograd", "checkpointing"
NAMES = {"jsd": "JSD", "fkl": "forward KL", "rkl": "reverse KL"}


@dataclass(frozen=True)
class Claim:
    """One line of the table. `found` has one number a repetition; the claim is about their median."""

    what: str
    found: list[float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"

    @property
    def median(self) -> float:
        return statistics.median(self.found)

    @property
    def required(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}"
        return "" if self.at_least is None else f">= {self.at_least:g} {self.unit}"

    @property
    def holds(self) -> bool | None:
        """None where nothing is required."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "required": self.required, "holds": self.holds, "median": self.median}


@dataclass
class Row:
    """What a row came to: `ways` keeps every measurement."""

    title: str
    claims: list[Claim] = field(default_factory=list)
    ways: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, label: str, found: Measured, claims: Sequence[tuple[str, str, str, dict[str, float]]]) -> None:
        """Ratios (what, over, under, requirement) of one set of paired repetitions."""
        self.ways[label] = {
            name: {"seconds": seconds, "first": found.warm[name]} for name, seconds in found.seconds.items()
        }
        self.skipped += [f"{label}: {name}: {why}" for name, why in found.skipped.items()]
        for what, over, under, required in claims:
            if ratios := found.ratios(over, under):
                self.claims.append(Claim(f"{label}: {what}", ratios, **required))
        self._losses(label, found)

    def _losses(self, label: str, found: Measured) -> None:
        losses = {name: w["facts"]["loss"] for name, w in found.warm.items() if "loss" in w.get("facts", {})}
        if OURS in losses:
            apart = {name: abs(x / losses[OURS] - 1) for name, x in losses.items()}
            if max(apart.values()) > 1e-4:
                self.notes.append(f"{label}: the losses differ: {losses}")


@dataclass(frozen=True)
class Bench:
    """How to measure: `peers` is their Python, None with the reason in `no_peers`."""

    repeat: int
    quick: bool
    peers: str | None
    no_peers: str
    model: str | None
    tokens: tuple[int, ...] = (512, 2048, 4096)
    """The N to measure at; the rows that need one N take the second, or the only one."""

    def cases(self) -> list[tuple[Shape, int]]:
        """(case, tokens) of the rows over N."""
        if self.quick:
            return [(TINY, 64)]
        large = [(LARGE, 512)] if len(self.tokens) > 2 else []
        return [*((REAL, n) for n in self.tokens), *large]

    @property
    def main(self) -> tuple[Shape, int]:
        """The case of the rows that need one."""
        return (TINY, 64) if self.quick else (REAL, self.tokens[min(1, len(self.tokens) - 1)])

    def loss_ways(self, shape: Shape, n: int, kind: str, frozen: bool = False) -> dict[str, Way]:
        """The floor, ours, the peers and the two textbook ways."""
        given = {"case": str(case(shape)), "n": n, "frozen": frozen}
        asked, logits = {**given, "kind": kind}, 4 * n * shape.vocabulary
        ways = {
            FLOOR: Way("with_torch:Floor", given),
            OURS: Way("with_workbench:Fused", asked),
            PLAIN: Way("with_torch:Plain", asked, bytes=19 * logits),
            CHECKPOINT: Way("with_torch:Checkpointed", asked),
        }
        if self.peers is not None:
            ways[TRL] = Way("with_trl:Distillation", asked, self.peers)
            ways[LIGER] = Way("with_liger:Chunked", asked, self.peers, bytes=19 * min(logits, 8192 * shape.vocabulary))
        return ways

    def without(self, row: Row) -> Row:
        """Say that the peers are missing."""
        if self.peers is None:
            row.skipped.append(f"TRL, Liger: {self.no_peers}")
        return row


def jsd(bench: Bench) -> Row:
    """JSD, forward and backward: <= 1.25 x its four products, >= 2.2 x TRL, >= 1.2 x Liger at every N."""
    row = Row("JSD, forward and backward")
    for shape, n in bench.cases():
        found = paired(bench.loss_ways(shape, n, "jsd"), bench.repeat)
        row.add(
            f"{shape.name}, N = {n}",
            found,
            [
                ("over its four matrix products", OURS, FLOOR, {"at_most": 1.25}),
                ("TRL's time over ours", TRL, OURS, {"at_least": 2.2}),
                ("Liger's time over ours", LIGER, OURS, {"at_least": 1.2}),
                ("plain autograd's time over ours", PLAIN, OURS, {}),
                ("checkpointing's time over ours", CHECKPOINT, OURS, {}),
            ],
        )
    return bench.without(row)


def kl(bench: Bench) -> Row:
    """A single KL: <= 1.2 x its four products, >= 1.7 x TRL."""
    row = Row("A single KL, forward and backward")
    shape, n = bench.main
    for kind in ("fkl", "rkl"):
        found = paired(bench.loss_ways(shape, n, kind), bench.repeat)
        row.add(
            f"{NAMES[kind]}, {shape.name}, N = {n}",
            found,
            [
                ("over its four matrix products", OURS, FLOOR, {"at_most": 1.2}),
                ("TRL's time over ours", TRL, OURS, {"at_least": 1.7}),
                ("Liger's time over ours", LIGER, OURS, {}),
                ("plain autograd's time over ours", PLAIN, OURS, {}),
                ("checkpointing's time over ours", CHECKPOINT, OURS, {}),
            ],
        )
    return bench.without(row)


def frozen(bench: Bench) -> Row:
    """Head without gradient (an adapter trains elsewhere): <= 1.3 x its three products."""
    row = Row("JSD with a frozen head")
    shape, n = bench.main
    found = paired(bench.loss_ways(shape, n, "jsd", frozen=True), bench.repeat)
    row.add(
        f"{shape.name}, N = {n}",
        found,
        [
            ("over its three matrix products", OURS, FLOOR, {"at_most": 1.3}),
            ("TRL's time over ours", TRL, OURS, {}),
            ("Liger's time over ours", LIGER, OURS, {}),
        ],
    )
    return bench.without(row)


def padded(bench: Bench) -> Row:
    """A batch of 8 padded rows of which a quarter counts: >= 3 x TRL."""
    row = Row("JSD on a padded batch, a quarter full")
    shape, n = bench.main
    given = {"case": str(case(shape)), "n": n, "kind": "jsd", "valid": n // 4}
    ways = {OURS: Way("with_workbench:Fused", given)}
    if bench.peers is not None:
        ways[TRL] = Way("with_trl:Distillation", given, bench.peers)
    label = f"{shape.name}, 8 x {n // 8} positions, {n // 4} count"
    row.add(label, paired(ways, bench.repeat), [("TRL's time over ours", TRL, OURS, {"at_least": 3.0})])
    return bench.without(row)


def sparse(bench: Bench) -> Row:
    """A teacher of K = 64 log-probs and a tail bucket: <= 1.25 x three products."""
    row = Row("Forward KL against the teacher's 64 most probable tokens and a tail bucket")
    from with_workbench import HAS_SPARSE

    if not HAS_SPARSE:
        row.skipped.append("workbench.divergence.sparse is not there")
        return row
    shape, n = bench.main
    for kind in ("fkl", "jsd"):
        given = {"case": str(case(shape)), "n": n}
        ways = {
            FLOOR: Way("with_torch:Floor", {**given, "sparse": True}),
            OURS: Way("with_workbench:Sparse", {**given, "kind": kind, "k": 16 if bench.quick else 64}),
        }
        label = f"{NAMES[kind]}, {shape.name}, N = {n}"
        row.add(label, paired(ways, bench.repeat), [("over three matrix products", OURS, FLOOR, {"at_most": 1.25})])
    return row


def memory(bench: Bench) -> Row:
    """Peak of what the JSD allocates beside its two gradients' operands: <= 2 c V 4 + V H 4 bytes, flat in N."""
    row = Row("Peak extra memory of the JSD, forward and backward")
    shape, _ = bench.main
    peaks = {}
    sizes = (64, 128) if bench.quick else bench.tokens
    bound = 4 * (2 * 256 * shape.vocabulary + shape.vocabulary * shape.width)
    for n in sizes:
        ways = bench.loss_ways(shape, n, "jsd")
        for name in (OURS, CHECKPOINT, TRL, LIGER):
            if name not in ways:
                continue
            process = Process(ways[name])
            try:
                peak, warm = process.ask("peak")["peak"], process.ask("warm")
            finally:
                process.stop()
            row.ways.setdefault(name, {})[str(n)] = {"peak": peak, "resident_after": warm["resident"]}
            if name == OURS:
                peaks[n] = peak - 4 * n * shape.width  # the gradient itself grows with N and is the result
            else:
                row.claims.append(Claim(f"{name}, N = {n}", [peak / 1e6], unit="MB"))
    for n, peak in peaks.items():
        row.claims.append(
            Claim(f"workbench, N = {n}: over two tiles and the head's gradient", [peak / bound], at_most=1.05)
        )
        row.claims.append(Claim(f"workbench, N = {n}", [peak / 1e6], unit="MB"))
    first, last = peaks[sizes[0]], peaks[sizes[-1]]
    row.claims.append(Claim(f"workbench, N = {sizes[-1]} over N = {sizes[0]}", [last / first], at_most=1.01))
    row.notes.append(
        f"two tiles of 256 x V and V x H in float32 are {bound / 1e6:.0f} MB; the N x H gradient, which is the result,"
        " is not counted"
    )
    return bench.without(row)


def error(bench: Bench) -> Row:
    """Relative error of the gradients against float64: <= 1.5 x that of float32 logits with float64 after them."""
    row = Row("Error of the gradients against float64")
    shape, _ = bench.main
    n = 64 if bench.quick else 512
    for kind in NAMES:
        given = {"case": str(case(shape)), "n": n, "kind": kind}
        ways = {"rounded": Way("with_torch:Exact", {**given, "logits": True}), **bench.loss_ways(shape, n, kind)}
        ways.pop(FLOOR)
        with tempfile.TemporaryDirectory() as folder:
            exact = str(Path(folder) / "exact.pt")
            _ask(Way("with_torch:Exact", given), f"save {exact}")
            paths = {name: str(Path(folder) / f"{i}.pt") for i, name in enumerate(ways)}
            for name, way in ways.items():
                _ask(way, f"save {paths[name]}")
            compared = _ask(Way("with_torch:Compared", {"exact": exact, "others": paths}), "time")["facts"]
        row.ways[kind] = compared
        for which in ("hidden", "weight"):
            floor = compared["rounded"][which]
            for name in ways:
                if name != "rounded":
                    limit = {"at_most": 1.5} if name == OURS else {}
                    what = f"{NAMES[kind]}, {which} gradient, {name} (float32 logits alone: {floor:.1e})"
                    row.claims.append(Claim(what, [compared[name][which] / floor], **limit))
    return bench.without(row)


def _ask(way: Way, word: str) -> dict[str, Any]:
    process = Process(way)
    try:
        return process.ask(word)
    finally:
        process.stop()


RowFunction = Callable[[Bench], Row]
LOSS_ROWS: dict[str, RowFunction] = {
    "jsd": jsd,
    "kl": kl,
    "memory": memory,
    "padded": padded,
    "frozen": frozen,
    "sparse": sparse,
    "error": error,
}
