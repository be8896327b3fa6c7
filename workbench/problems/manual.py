"""A document for a problem whose answer is a program: pages of a manual of Python for what its reference makes use of.

A tutor that reads it knows which means suffice, and neither the program nor a result of a test: agreement of such
tutors says something, where an answer key would only be copied. It does tell names that the reference uses; a problem
without a reference, or with one that uses nothing described here, has no such document. Wording: ours.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from verifiers.programs import extract_program

HEADING = "From a manual of Python:"


def manual_pages(solution: str | None) -> str | None:
    """What the manual says of the constructs, functions and methods in a solution's program, by the alphabet.

    Neither order nor number of uses is told. None without a program, and where nothing in it is described.
    """
    program = extract_program(solution, "lenient").answer if solution else None
    if program is None:
        return None
    try:
        with warnings.catch_warnings():  # of another's source
            warnings.simplefilter("ignore")
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = sorted({_MANUAL[key] for key in _keys(tree) if key in _MANUAL})
    return "\n".join([HEADING, "", *lines]) if lines else None


def _keys(tree: ast.Module) -> Iterator[str]:
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        yield type(node).__name__
        if isinstance(node, ast.Name) and node.id not in own:
            yield f"{node.id}()"
        elif isinstance(node, ast.Attribute):
            yield f".{node.attr}()"
        elif isinstance(node, ast.ImportFrom):
            yield from (f".{alias.name}()" for alias in node.names)


_ENTRIES = """
ListComp|[expression for item in items if test]: a new list, item by item.
SetComp|{expression for item in items}: a new set, item by item.
DictComp|{key: value for item in items}: a new dictionary, item by item.
GeneratorExp|expression for item in items, as an argument: values made one by one, without a list.
IfExp|a if test else b: one of two values.
Lambda|lambda x: expression: a small function without a name, such as a key to sort by.
While|while test: repeats its block as long as the test holds; break leaves it, continue goes to its next round.
For|for item in items: runs its block once for every item; over a dictionary it goes over the keys.
Slice|items[start:stop:step]: a part, without the item at stop; a negative index counts from the end, step -1 reverses.
Mod|a % b: the remainder of a division, with the sign of b; n % 2 is 1 for odd numbers.
FloorDiv|a // b: a division rounded down to a whole number.
Div|a / b: a division; its result is a float.
Pow|a ** b: a power.
BitAnd|a & b: the bits, or the members of sets, that both have.
BitOr|a | b: the bits, or the members of sets, that one of them has.
BitXor|a ^ b: the bits, or the members of sets, that exactly one of them has.
LShift|a << n: the bits moved up by n places; a times 2 ** n.
RShift|a >> n: the bits moved down by n places.
In|item in items: whether it is there; for sets and dictionary keys at once, however many there are.
NotIn|item not in items: whether it is absent.
Is|a is None: whether a value is the one None.
Starred|*items in a call or list: the items one after another; in an assignment it takes what is left over.
AugAssign|a += b: adds to what a holds.
Dict|{} and {key: value}: a dictionary; d[key] reads and sets, and keys keep the order in which they came.
Set|{a, b}: a set, which holds each member once.
JoinedStr|f"{value}": a text with values in it; {value:.2f} has two decimals.
Nonlocal|nonlocal name: lets an inner function set a name of the function around it.
Try|try: ... except Error: ...: goes on elsewhere when an exception is raised.
Raise|raise ValueError(text): ends what runs with an exception.
Yield|yield value: hands out one value and waits until the next is asked for.
ClassDef|class Name: makes a kind of object; __init__(self, ...) sets up a new one, self holds what it keeps.
BoolOp|a and b, a or b: tests joined; the second is looked at only where the first does not decide.
len()|len(items): how many there are.
range()|range(start, stop, step): whole numbers from start up to stop, which is not one of them.
int()|int(text): the whole number that a text spells; int(text, 2) reads it in base 2.
float()|float(text): the number that a text spells.
str()|str(value): the value as text.
sum()|sum(values): all added up, 0 for none; sum(test for ...) counts how often a test holds.
max()|max(values, key=..., default=...): the largest; without values it raises an exception unless a default is given.
min()|min(values, key=..., default=...): the smallest; without values it raises an exception unless a default is given.
sorted()|sorted(items, key=..., reverse=...): a new list in ascending order; equal ones keep their order.
reversed()|reversed(items): the items from the last to the first.
list()|list(items): a new list of the items.
tuple()|tuple(items): the items as a tuple, which may be a key.
set()|set(items): each item once, in no order.
frozenset()|frozenset(items): a set that does not change and may be a key.
dict()|dict(pairs): a dictionary from pairs of key and value.
enumerate()|enumerate(items, start=0): pairs of a counter and an item.
zip()|zip(a, b): pairs of items at the same place, as many as the shorter has.
map()|map(function, items): the function's value for each item.
filter()|filter(test, items): the items for which the test holds.
any()|any(tests): whether at least one holds; False for none.
all()|all(tests): whether each one holds; True for none.
abs()|abs(number): without its sign.
round()|round(number, digits): rounded; a half goes to the even neighbour.
divmod()|divmod(a, b): the quotient rounded down, and the remainder.
pow()|pow(a, b, m): a power, divided by m as it grows; what is left is the remainder.
chr()|chr(code): the character with this code.
ord()|ord(character): its code; letters of the alphabet have codes one after another.
bin()|bin(number): its base-2 text, after 0b.
hex()|hex(number): its base-16 text, after 0x.
isinstance()|isinstance(value, kind): whether a value is of this kind.
input()|input(): the next line of the input, without its end.
print()|print(a, b, sep=..., end=...): writes a line, its parts apart by blanks.
.stdin()|sys.stdin: the input; read() gives all of it, and a loop over it gives line by line.
.append()|items.append(item): adds one at the end of a list.
.extend()|items.extend(more): adds several at the end of a list.
.insert()|items.insert(at, item): puts one in before a place.
.pop()|items.pop(), items.pop(at): takes the last one out, or that at a place; d.pop(key) takes a key out.
.remove()|items.remove(item): takes out the first that equals it.
.sort()|items.sort(key=..., reverse=...): sorts the list itself and returns nothing.
.reverse()|items.reverse(): turns the list itself round and returns nothing.
.index()|items.index(item): the first place where it stands; an exception where it does not.
.count()|items.count(item): how often it is there.
.copy()|items.copy(): a new one with the same items.
.split()|text.split(): the words between blanks; text.split(sign) cuts at every sign and keeps empty parts.
.splitlines()|text.splitlines(): the lines without their ends.
.join()|separator.join(texts): one text of several.
.strip()|text.strip(): without blanks at both ends; strip(signs) takes these signs off.
.lower()|text.lower(): in lower case.
.upper()|text.upper(): in upper case.
.replace()|text.replace(old, new): every old one exchanged.
.find()|text.find(part): where a part begins, -1 where it does not.
.startswith()|text.startswith(part): whether it begins so.
.endswith()|text.endswith(part): whether it ends so.
.isdigit()|text.isdigit(): whether it has digits and nothing else.
.isalpha()|text.isalpha(): whether it has letters and nothing else.
.isalnum()|text.isalnum(): whether it has letters and digits and nothing else.
.get()|d.get(key, default): the value of a key, or the default where there is none.
.setdefault()|d.setdefault(key, default): the value of a key, which is set to the default first where there is none.
.items()|d.items(): the pairs of key and value.
.keys()|d.keys(): the keys.
.values()|d.values(): the values.
.fromkeys()|dict.fromkeys(items): a dictionary with these keys: each item once, in the order they came.
.add()|s.add(item): puts one into a set.
.discard()|s.discard(item): takes one out of a set if it is there.
.Counter()|collections.Counter(items): how often each item is there; most_common(n) sorts by it.
.defaultdict()|collections.defaultdict(kind): a dictionary in which a missing key begins with kind().
.deque()|collections.deque(items): a list that is quick at both ends: append, appendleft, pop, popleft.
.popleft()|queue.popleft(): takes the first one out of a deque.
.heappush()|heapq.heappush(heap, item): puts one into a list that is kept as a heap.
.heappop()|heapq.heappop(heap): takes the smallest out of a heap.
.heapify()|heapq.heapify(items): makes a list a heap.
.bisect_left()|bisect.bisect_left(items, x): the first place in an ascending list where x can stand.
.bisect_right()|bisect.bisect_right(items, x): the last place in an ascending list where x can stand.
.permutations()|itertools.permutations(items, n): every order of n of them.
.combinations()|itertools.combinations(items, n): every choice of n of them.
.product()|itertools.product(a, b): every pair of one of each.
.accumulate()|itertools.accumulate(values): the running sums.
.groupby()|itertools.groupby(items, key): runs of neighbours with the same key.
.lru_cache()|functools.lru_cache(None): keeps what a function returned, so that the same call is made once.
.cache()|functools.cache: keeps what a function returned, so that the same call is made once.
.reduce()|functools.reduce(function, items, start): joins the items two by two into one value.
.gcd()|math.gcd(a, b): the greatest common divisor.
.lcm()|math.lcm(a, b): the least common multiple.
.sqrt()|math.sqrt(x): the square root, a float.
.isqrt()|math.isqrt(n): the square root rounded down, exact for every size.
.floor()|math.floor(x): rounded down.
.ceil()|math.ceil(x): rounded up.
.factorial()|math.factorial(n): the product of 1 to n.
.findall()|re.findall(pattern, text): every part that fits a pattern.
.sub()|re.sub(pattern, new, text): every part that fits a pattern exchanged.
"""

_MANUAL = dict(line.split("|", 1) for line in _ENTRIES.strip().splitlines())
"""What stands in a program, `Name()` for a function and `.name()` for a method, and what is said of it."""
