"""What several answers agree on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import consensus


def test_the_gate_card_keeps_four_sevens():
    vote = consensus(["7", "7", "7", "7", "3", "3", "2", None])
    assert (vote.majority, vote.members) == ("7", (0, 1, 2, 3))
    assert (vote.n_voters, vote.total, vote.agreement) == (7, 8, 0.5)
    assert len(vote.members) >= 4


def test_the_gate_card_rejects_a_tie():
    vote = consensus(["7", "7", "7", "3", "3", "3", "2", "1"])
    assert (vote.majority, vote.members, vote.agreement) == (None, (), 0.0)
    assert vote.tied
    assert vote.clusters == ((0, 1, 2), (3, 4, 5), (6,), (7,))


def test_votes_are_counted_by_what_they_state():
    vote = consensus(["\\frac12", "0.5", "1/2", "\\frac{2}{4}", "0.4", "50\\%"])
    assert (vote.majority, vote.members) == ("\\frac12", (0, 1, 2, 3, 5))
    vote = consensus(["\\sqrt2-1", "\\frac{1}{1+\\sqrt2}", "0.41"])
    assert vote.members == (0, 1)


def test_no_answer_is_no_vote():
    for answers in ([], [None, None], ["", "?", None]):
        vote = consensus(answers)
        assert (vote.majority, vote.members, vote.n_voters, vote.agreement) == (None, (), 0, 0.0)
        assert vote.total == len(answers)
        assert not vote.tied


def test_what_cannot_be_read_agrees_only_with_itself():
    vote = consensus(["\\foo{1}", "\\foo{1}", "\\foo{2}", "\ud800", "("])
    assert vote.members == (0, 1)
    assert len(vote.clusters) == 4


ANSWERS = st.lists(st.sampled_from(["7", "7.0", "14/2", "3", "\\sqrt9", "2", "x", "?", None]), max_size=10)


@given(answers=ANSWERS)
@settings(max_examples=100, deadline=None)
def test_clusters_partition_the_voters_and_the_majority_is_the_largest(answers):
    vote = consensus(answers)
    assert sorted(index for cluster in vote.clusters for index in cluster) == [
        index for index, answer in enumerate(answers) if answer not in (None, "?")
    ]
    sizes = [len(cluster) for cluster in vote.clusters]
    assert sizes == sorted(sizes, reverse=True)
    alone = bool(sizes) and (len(sizes) == 1 or sizes[0] > sizes[1])
    assert (vote.majority is not None) == alone == (bool(sizes) and not vote.tied)
    assert vote.members == (vote.clusters[0] if alone else ())


@given(answers=ANSWERS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_order_of_votes_does_not_change_the_count(answers, data):
    shuffled = data.draw(st.permutations(answers))
    assert len(consensus(answers).members) == len(consensus(shuffled).members)
