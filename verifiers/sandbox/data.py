"""Plain data between processes that do not trust each other.

A value becomes one line per node, parents before children: `int ff`, `float 0x1p+0`, `str "text"`, `list 3`. Reading
needs no recursion and no evaluation, and is bounded by counting bytes and lines first. What is no plain data becomes
`opaque`, which equals nothing.

The reader never builds a set or a dict: 60,000 keys of equal hash would keep it busy for hours. It keeps `Data`, pairs
of a tag and a payload, and compares sets and dicts by their sorted encodings.

    >>> equal(read(write({1: (2, 3.0)})), {1: [2, 3]})
    True
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

Data = tuple[str, Any]
"""A tag and its payload: a Python scalar, the text of an opaque type, or a tuple of `Data` (dict: key, value, ...)."""

LARGEST = 8 << 20
NODES = 2_000_000
DEPTH = 200
TOLERANCE = 1e-6
"""Relative, where either side is a float."""
CONTAINERS = ("list", "tuple", "set", "frozenset", "dict")
BASES: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
LISTED: tuple[type, ...] = (range, type({}.keys()), type({}.values()), type({}.items()))


class DataError(ValueError):
    """These bytes are no plain data, or too much of it."""


def write(value: Any) -> bytes:
    """Encode a value. Subclasses are read through the base class's methods; finite iterators become lists.

    Raises:
        DataError: larger than `LARGEST`, `NODES` or `DEPTH` allow.
    """
    lines: list[str] = []
    # Children wait on the stack as iterators: an infinite one is read only until the node limit.
    stack: list[Iterator[Any]] = [iter((value,))]
    while stack:
        try:
            item = next(stack[-1])
        except StopIteration:
            stack.pop()
            continue
        children = _line(item, lines)
        if len(lines) > NODES or len(stack) > DEPTH:
            raise DataError("the value has too many parts or is nested too deeply")
        if children is not None:
            stack.append(iter(children))
    text = "\n".join(lines).encode("ascii")
    if len(text) > LARGEST:
        raise DataError("the value is too large")
    return text


def _line(item: Any, lines: list[str]) -> list[Any] | None:
    kind = type(item)
    if item is None:
        lines.append("none")
    elif kind is bool:
        lines.append(f"bool {int(item)}")
    elif issubclass(kind, int):
        lines.append(f"int {int.__add__(item, 0):x}")
    elif issubclass(kind, float):
        lines.append(f"float {float.hex(item)}")
    elif issubclass(kind, complex):
        lines.append(f"complex {float.hex(complex.real.__get__(item))} {float.hex(complex.imag.__get__(item))}")
    elif issubclass(kind, str):
        lines.append("str " + json.dumps(str.__add__(item, "")))
    elif issubclass(kind, bytes | bytearray):
        lines.append("bytes " + (bytes.hex(item) if issubclass(kind, bytes) else bytearray.hex(item)))
    else:
        return _container(kind, item, lines)
    return None


def _container(kind: type, item: Any, lines: list[str]) -> list[Any] | None:
    children: list[Any]
    base = next((base for base in BASES if issubclass(kind, base)), None)
    if base is not None:
        tag, children = BASES[base], list(base.__iter__(item))
    else:
        if issubclass(kind, dict):
            tag, children = "dict", [part for pair in dict.items(item) for part in pair]
        elif hasattr(kind, "__next__") or kind in LISTED:
            tag, children = "list", list(islice(iter(item), NODES + 1))
        else:
            lines.append("opaque " + json.dumps(kind.__name__[:100]))
            return None
    lines.append(f"{tag} {len(children)}")
    if len(children) > NODES:
        raise DataError("the value has too many parts")
    return children


def read(text: bytes) -> Data:
    """Decode what `write` made, from whoever.

    Raises:
        DataError: whatever is wrong with it.
    """
    if len(text) > LARGEST or text.count(b"\n") >= NODES:
        raise DataError("the value is too large")
    open_nodes: list[tuple[str, int, list[Data]]] = [("root", 1, [])]
    for line in text.split(b"\n"):
        tag, _, rest = line.partition(b" ")
        node = _node(tag, rest, open_nodes)
        while node is not None:
            open_nodes[-1][2].append(node)
            name, size, found = open_nodes[-1]
            if len(found) < size or len(open_nodes) == 1:
                break
            open_nodes.pop()
            node = (name, tuple(found))
        if len(open_nodes) > DEPTH + 1:
            raise DataError("nested too deeply")
    (_, _, found) = open_nodes[0]
    if len(open_nodes) != 1 or len(found) != 1:
        raise DataError("not one complete value")
    return found[0]


def _node(tag: bytes, rest: bytes, open_nodes: list[tuple[str, int, list[Data]]]) -> Data | None:
    """A finished node, or None after opening one that waits for its children."""
    if len(open_nodes) == 1 and open_nodes[0][2]:
        raise DataError("more than one value")
    try:
        name, text = tag.decode("ascii"), rest.decode("ascii")
        if name in CONTAINERS:
            size = int(text) if len(text) < 9 else -1
            if size < 0 or (name == "dict" and size % 2):
                raise DataError("a wrong size")
            if size == 0:
                return (name, ())
            open_nodes.append((name, size, []))
            return None
        return (name, _scalar(name, text))
    except (ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"a malformed value: {type(error).__name__}") from None


def _scalar(name: str, text: str) -> Any:
    if name not in SCALARS:
        raise DataError("an unknown tag")
    return SCALARS[name](text)


def _none(text: str) -> None:
    return None


def _complex(text: str) -> complex:
    real, imaginary = text.split(" ")
    return complex(float.fromhex(real), float.fromhex(imaginary))


def _string(text: str) -> str:
    string = json.loads(text)
    if type(string) is not str:
        raise DataError("no string")
    return string


def _int(text: str) -> int:
    return int(text, 16)  # linear in its length, unlike decimal


SCALARS = {
    "none": _none,
    "bool": "1".__eq__,
    "int": _int,
    "float": float.fromhex,
    "complex": _complex,
    "bytes": bytes.fromhex,
    "str": _string,
    "opaque": _string,
}


def equal(found: Data, expected: Any) -> bool:
    """Whether what a candidate returned is what was expected.

    As Python's == on plain data (True == 1, 5.0 == 5), except that a list equals a tuple, and that numbers agree within
    a relative `TOLERANCE` where either is a float. Members of sets and keys of dicts are compared exactly. A string
    never equals a number; nan and opaque values equal nothing.

    Args:
        found: as decoded by `read`.
        expected: a Python value, trusted.
    """
    wanted = read(write(expected))
    try:
        return _same(found, wanted)
    except (
        ArithmeticError,
        ValueError,
        RecursionError,
    ):  # sizes beyond every float: no candidate gets out of a verdict
        return False


def _same(found: Data, expected: Data) -> bool:
    stack = [(found, expected)]
    while stack:
        (left, a), (right, b) = stack.pop()
        kinds = {_family(left), _family(right)}
        if len(kinds) > 1 or "opaque" in kinds:
            return False
        if left in CONTAINERS:
            members = _members(_family(left), a, b)
            if members is None:
                return False
            stack.extend(members)
        elif not _same_scalar(a, b):
            return False
    return True


def _members(tag: str, a: tuple[Data, ...], b: tuple[Data, ...]) -> list[tuple[Data, Data]] | None:
    """The pairs still to compare, or None where the containers differ already."""
    if len(a) != len(b):
        return None
    if tag == "set":
        return [] if sorted(map(canonical, a)) == sorted(map(canonical, b)) else None
    if tag != "dict":
        return list(zip(a, b, strict=True))
    found, expected = _pairs(a), _pairs(b)
    if [key for key, _ in found] != [key for key, _ in expected]:
        return None
    return [(x, y) for (_, x), (_, y) in zip(found, expected, strict=True)]


def _family(tag: str) -> str:
    if tag in ("bool", "int", "float", "complex"):
        return "number"
    if tag in ("list", "tuple"):
        return "sequence"
    return "set" if tag == "frozenset" else tag


def _same_scalar(a: Any, b: Any) -> bool:
    if isinstance(a, complex) or isinstance(b, complex):
        return bool(a == b or (abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) and math.isfinite(abs(a - b))))
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=TOLERANCE)
        except OverflowError:  # an int beyond every float
            return bool(a == b)
    return bool(a == b)


def _pairs(parts: tuple[Data, ...]) -> list[tuple[str, Data]]:
    pairs = [(canonical(key), value) for key, value in zip(parts[::2], parts[1::2], strict=True)]
    return sorted(pairs, key=_first)


def _first(pair: tuple[str, Data]) -> str:
    return pair[0]


def canonical(node: Data) -> str:
    """One text for all values that Python's == calls equal, a list and a tuple too."""
    tag, payload = node
    if tag == "opaque" or payload != payload:
        return f"never {id(node)}"
    if tag == "complex" and payload.imag == 0:
        tag, payload = "float", payload.real
    if tag == "float" and math.isfinite(payload) and payload == int(payload):
        payload = int(payload)
    if _family(tag) == "set":
        return "set(" + ",".join(sorted(map(canonical, payload))) + ")"
    if tag in ("list", "tuple"):
        return "sequence(" + ",".join(map(canonical, payload)) + ")"
    if tag == "dict":
        return "dict(" + ",".join(f"{key}:{canonical(value)}" for key, value in _pairs(payload)) + ")"
    if _family(tag) == "number":
        return f"{int(payload):x}" if isinstance(payload, int) else repr(payload)
    return f"{tag}{payload!r}"


class Opaque:
    """What a check sees instead of a value that is no plain data: it neither equals nor differs from anything."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, type_name: str) -> None:
        """Remember the type's name for messages."""
        self.type_name = type_name

    def __eq__(self, other: object) -> bool:
        """Never."""
        return False

    def __ne__(self, other: object) -> bool:
        """Never."""
        return False

    def __bool__(self) -> bool:
        """Refuse: `assert candidate()` must not pass on it."""
        raise TypeError(f"a {self.type_name} is no plain data")


def build(node: Data) -> Any:
    """The Python value. Only inside a jail: hostile keys make this slow."""
    tag, payload = node
    if tag == "opaque":
        return Opaque(payload)
    if tag == "dict":
        parts = [build(part) for part in payload]
        return dict(zip(parts[::2], parts[1::2], strict=True))
    if tag in CONTAINERS:
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[tag](build(part) for part in payload)
    return payload


def show(node: Data, longest: int = 200) -> str:
    """As Python would print it, within about `longest` characters; printable ASCII of the candidate's making."""
    tag, payload = node
    if tag == "opaque":
        return f"<{ascii(payload)[1:-1]}>"[:longest]
    if tag == "int" and payload.bit_length() > 4 * longest:
        return f"<an int of {payload.bit_length()} bits>"
    if tag not in CONTAINERS:
        return ascii(payload[: longest + 1] if tag in ("str", "bytes") else payload)[:longest]
    parts: list[str] = []
    left = longest
    for part in payload:
        if left <= 0:
            parts.append("...")
            break
        parts.append(show(part, left))
        left -= len(parts[-1]) + 2
    if tag == "dict":
        parts = [": ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    brackets = {"list": "[]", "tuple": "()", "dict": "{}"}.get(tag, "{}")
    comma = "," if tag == "tuple" and len(payload) == 1 else ""
    return brackets[0] + ", ".join(parts) + comma + brackets[1]
