"""What people are shown of a completion: the same numbers everywhere, and no text that anything obeys."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.pages import HOSTILE, seen
from workbench.divergence import JSD, ForwardKL, ReverseKL
from workbench.inspector.page import ansi, static, tables, value
from workbench.parts.terms import Distill
from workbench.text import printable
from workbench.train.report import term_name

anything = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates too
texts = st.lists(st.one_of(anything, st.sampled_from(HOSTILE)), min_size=1, max_size=8)


class Page(HTMLParser):
    """What a browser would make of a file: its tags, its attributes, the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside: list[tuple[str, str]] = []
        self.open = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside.append((tag, ""))
        self.open = True

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, data):
        if self.open:
            tag, text = self.inside[-1]
            self.inside[-1] = (tag, text + data)

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.inside if name == tag]


def test_the_value_holds_every_number_of_the_completion():
    made = seen(["The", " answer", "\n"], weight=[1, 0, 0.5])
    back = json.loads(value.token_value(made))
    assert back["v"] == 1
    assert (back["run"], back["rollout"], back["off"], back["source"]) == ("a-run", "8/p-1/student/0", 0, "recomputed")
    assert back["text"] == ["The", " answer", "\n"]
    for name, column in {
        "delta": made.teacher_logp - made.student_logp,
        "div": made.reverse_kl,
        "w": made.weight,
        "ent_s": made.student_entropy,
        "ent_t": made.teacher_entropy,
        "fkl": made.forward_kl,
        "rkl": made.reverse_kl,
        "jsd": made.jsd,
        "logp_s": made.student_logp,
        "logp_t": made.teacher_logp,
        "rank_s": made.student_rank,
        "rank_t": made.teacher_rank,
    }.items():
        np.testing.assert_allclose(back[name], column, rtol=1e-5, err_msg=name)
    assert back["why"] == ["counted", "gated by Correct", "counted"]


def test_a_number_that_is_not_known_is_null_and_an_infinity_has_a_name():
    made = seen(["a", "b", "c"])
    made = replace(made, teacher_logp=np.array([math.nan, -math.inf, -1.0]), values=np.array([[math.inf, 0.1, 0.2]]))
    back = json.loads(value.token_value(made), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back["logp_t"] == [None, "-Infinity", -1.0]
    assert back["div"][0] == "Infinity"


def test_a_piece_says_where_it_belongs_and_leaves_the_prompts_to_the_first():
    made = seen([str(i) for i in range(10)])
    whole, later = json.loads(value.token_value(made)), json.loads(value.token_value(made, 6))
    assert later["off"] == 6
    assert later["text"] == whole["text"][6:]
    assert later["div"] == whole["div"][6:]
    assert "prompts" in whole
    assert "prompts" not in later
    piece = made.take(slice(4, 8))
    assert json.loads(value.token_value(piece))["off"] == 4
    assert json.loads(value.token_value(piece, 6))["text"] == ["6", "7"]
    assert json.loads(value.token_value(piece, 8))["text"] == []
    with pytest.raises(ValueError, match="Positions count from 0"):
        value.token_value(made, -1)


def test_a_special_token_has_its_name_and_a_part_of_a_character_has_none():
    made = seen(["", "é", ""])
    first, _, last = made.token_ids
    made = replace(made, pieces={**made.pieces, first: "\ufffd", last: "<|im_end|>"})
    assert json.loads(value.token_value(made))["special"] == ({} if first == last else {"2": "<|im_end|>"})


def test_the_detail_of_a_token_aligns_both_roles_and_accounts_for_all_probability():
    made = seen(["a", "b", "c"])
    found = value.detail(made, 1)
    ids = [a["token"] for a in found["alternatives"]]
    assert len(set(ids)) == len(ids)
    teacher = [a["teacher"] for a in found["alternatives"]]
    assert teacher[:3] == sorted(teacher, reverse=True)[:3]
    assert {a["token"] for a in found["alternatives"] if a["written"]} <= {made.token_ids[1]}
    for role in ("student", "teacher"):
        listed = [math.exp(a[role]) for a in found["alternatives"]]
        assert math.fsum([*listed, math.exp(found["rest"][role])]) == pytest.approx(1, abs=1e-5)
    assert found["terms"] == [
        {
            "name": "ReverseKL",
            "value": pytest.approx(made.reverse_kl[1], rel=1e-5),
            "weight": pytest.approx(1 / 3, rel=1e-5),
        }
    ]
    assert value.detail(made.take(slice(1, 3)), 1) == found
    with pytest.raises(IndexError):
        value.detail(made.take(slice(1, 3)), 0)


def test_the_packed_file_says_the_same_as_the_details():
    made = seen(["a", "b", "c"])
    packed = value.document(made)
    for t in range(3):
        found = value.detail(made, t)
        flat = [x for a in found["alternatives"] for x in (a["token"], a["student"], a["teacher"])]
        assert packed["tops"][t] == flat
        terms = zip(packed["terms"], packed["values"], packed["weights"], strict=True)
        assert [{"name": k, "value": v[t], "weight": w[t]} for k, v, w in terms] == found["terms"]
        assert packed["rest"][t] == [found["rest"]["student"], found["rest"]["teacher"]]
        assert all(packed["pieces"][str(a["token"])] == a["text"] for a in found["alternatives"])
    assert value.document(seen(["a"], k=0))["tops"] is None


def test_what_only_one_prompt_says_is_marked():
    shown = value.prompts(seen(["a"]))
    assert shown["student"] == {"tokens": 5, "parts": [("<|user|>What is 1+1?", False)]}
    assert shown["teacher"]["parts"] == [("<|user|>What is 1+1?", False), (" It is 2", True)]


def test_a_word_that_both_prompts_happen_to_use_is_no_common_text():
    shown = value.prompts(seen(["x"], prompts=(("<", "one", " the", " two", ">"), ("<", "3", " the", " 4", ">"))))
    assert shown["student"]["parts"] == [("<", False), ("one the two", True), (">", False)]


@given(a=st.lists(st.sampled_from("abc"), max_size=12), b=st.lists(st.sampled_from("abc"), max_size=12))
def test_marking_keeps_both_prompts_and_what_is_unmarked_is_common(a, b):
    shown = value.prompts(seen(["x"], prompts=(tuple(a), tuple(b))))
    for role, tokens in (("student", a), ("teacher", b)):
        assert "".join(text for text, _ in shown[role]["parts"]) == "".join(tokens)
    common = ["".join(text for text, differs in shown[role]["parts"] if not differs) for role in ("student", "teacher")]
    assert common[0] == common[1]


@settings(max_examples=60, deadline=None)
@given(texts)
def test_no_text_becomes_a_part_of_the_page(pieces):
    name = "".join(pieces)
    made = seen(pieces, run=name, rollout=name, question=name, answer=name, prompts=(tuple(pieces), (name,)))
    made = replace(made, pieces=dict.fromkeys(made.pieces, name), why=tuple(pieces))
    text = static.page([made, made])
    text.encode("ascii")
    plain, there = Page(static.page([seen(["a"]), seen(["b"])], title="t")), Page(text)
    assert there.tags == plain.tags
    assert [key for key, _ in there.attributes] == [key for key, _ in plain.attributes]
    assert not [block for block in there.of("script")[:2] if set(block) & {"<", ">", "&"}]
    data = [json.loads(block) for block in there.of("script")[:2]]
    assert data[0]["value"]["text"] == pieces
    assert data[0]["value"]["run"] == name


def test_the_page_runs_its_own_script_alone_and_asks_nobody():
    text = static.page(seen(["a"]))
    page = Page(text)
    policy = next(v for k, v in page.attributes if k == "content" and v and v.startswith("default-src"))
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        code = page.of(tag)[-1]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.findall(r"https?://|//[a-z]|@import|url\(", text.replace("// ", ""))
    assert {k for k, _ in page.attributes} <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "id",
        "value",
        "type",
    }


def test_the_app_can_take_style_and_script_as_they_are():
    # The app evaluates the style as a template of two kinds; neither may find anything in it.
    for sign in ("{{", "${", "`", "\\"):
        assert sign not in static.style()
    for sign in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert sign not in static.script()


def test_assets_fit_on_a_few_screens():
    folder = static.files(static.__package__)
    for asset in [a for a in folder.iterdir() if a.name.endswith((".js", ".css"))]:
        assert asset.read_text().count("\n") < 400, asset.name


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(20, 60), st.booleans(), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_a_terminal_obeys_only_our_colours(pieces, width, colour, encoding):
    shown = ansi.tinted(seen(pieces), ansi.Pen(width, colour, encoding))
    bare = re.sub(r"\x1b\[(?:0|30;48;2;\d+;\d+;\d+)m", "", shown)
    assert bare == printable(bare, lines=True)
    assert "\t" not in bare
    shown.encode(encoding)
    assert max(cell_len(line) for line in bare.split("\n")) <= width
    if not colour:
        assert bare == shown


def test_marks_say_what_colours_say():
    made = seen(["abc", "def", "ghi", "jkl", "mno"], weight=[1, 1, 1, 1, 0])
    made = replace(made, student_logp=np.full(5, -4.0), teacher_logp=np.array([-3.0, -1.0, -5.0, -7.0, -4.0]))
    assert ansi.tinted(made, ansi.Pen(80)) == "abcdefghijklmno\n+++###---===///"
    tints = re.findall(r"48;2;(\d+);(\d+);(\d+)m(\w+)", ansi.tinted(made, ansi.Pen(80, colour=True)))
    assert [t[3] for t in tints] == ["abc", "def", "ghi", "jkl"]
    assert int(tints[1][2]) < int(tints[0][2]) < 255  # the more, the less blue is left of the teacher's orange
    assert int(tints[3][0]) < int(tints[2][0]) < 255


def test_lines_of_the_completion_are_lines_and_a_narrow_terminal_breaks_between_tokens():
    assert ansi.tinted(seen(["a\n", "\n", "b"], weight=[0, 0, 0]), ansi.Pen(80)).split("\n")[::2] == ["a↵", "↵", "b"]
    narrow = ansi.tinted(seen(["twelve chars", "twelve chars", "x" * 25], weight=[0] * 3), ansi.Pen(20)).split("\n")[
        ::2
    ]
    assert narrow == ["twelve chars", "twelve chars", "x" * 20, "x" * 5]
    assert ansi.tinted(seen(["a\n"], weight=[0]), ansi.Pen(80, encoding="ascii")) == "a\\n\n///"


@settings(max_examples=60, deadline=None)
@given(texts)
def test_no_cell_is_a_formula_and_every_number_is_there(pieces):
    made = seen(pieces, run="=1+1", rollout="@x")
    rows = list(csv.reader(io.StringIO(tables.table(made), newline="")))
    assert rows[0] == list(tables.HEADER)
    assert len(rows) == 1 + len(pieces)
    for t, row in enumerate(rows[1:]):
        found = dict(zip(rows[0], row, strict=True))
        for name in ("run", "rollout", "text", "why"):
            assert found[name].strip()[:1] not in ("=", "+", "-", "@")
            assert found[name] == printable(found[name])
        assert float(found["student_logp"]) == pytest.approx(made.student_logp[t], rel=1e-5)
        assert float(found["loss"]) == pytest.approx(made.loss[t], rel=1e-5)
        assert (int(found["position"]), int(found["student_rank"])) == (t, made.student_rank[t])


@settings(max_examples=30, deadline=None)
@given(texts)
def test_the_json_twin_writes_the_page_again(pieces):
    made = seen(pieces)
    assert static.page_of(json.loads(tables.documents([made]))) == static.page(made)


def test_a_kl_is_spelt_out_in_the_direction_that_its_term_has():
    forward, reverse = "forward KL = KL(teacher || student)", "reverse KL = KL(student || teacher)"
    directions = {"ForwardKL": forward, "ReverseKL": reverse}
    for divergence in (ForwardKL(), ReverseKL(), JSD()):
        name = term_name(Distill(divergence))
        assert value.divergence_name(seen(["a"], terms=(name,))) == directions.get(name, name)
    assert value.divergence_name(seen(["a"], terms=())) == reverse
    assert value.divergence_name(seen(["a"] * 2, terms=("ForwardKL.1",))) == forward
