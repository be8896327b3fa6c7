"""Every recipe with another model as teacher says what its paper says: known answers through the recipe itself.

The numbers are those of the fixtures F3 (one token) and S3 (three), made in float64 from the papers' formulas or by
running released code; here they meet the catalogue's own terms, transforms, plans, gates and reductions.
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.board import F3, S3, Outcome, Written, at_start, step
from workbench.overrides import choose
from workbench.recipes import ALL
from workbench.records import Author

FORWARD = (-0.4, 0.2, 0.2)
REVERSE = (-0.3599853183, 0.1361975919, 0.2237877264)
CROSS = (-0.7, 0.4, 0.3)
"""Gradient of -log q at the first token."""
RATIO = (0.8472978604, -1.3862943611, 0.6931471806)
"""log p_T / p_S along S3."""


def near(value: object, to: float = 1e-9) -> object:
    return pytest.approx(value, abs=to)


def mix(one, other, share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]


def one_token(name: str, *changes: str, author: Author | None = None, tempered: float = 1.0) -> Outcome:
    """The recipe on F3, with the author it learns from (or the one asked for)."""
    recipe = choose(name, changes)
    who = author or ("student" if "student" in recipe.rollouts.authors else sorted(recipe.rollouts.authors)[0])
    return step(recipe, Written(*F3, author=who), tempered=tempered)


# -- one token, from the data set or the student ---------------------------------------------------------------------

KD = 0.5 * 0.3717362550 - 0.5 * math.log(0.3)
WARM = [x**0.5 for x in F3[0][0]], [x**0.5 for x in F3[1][0]]
KD_GRADIENT = mix(
    [2.0 * (q / sum(WARM[1]) - p / sum(WARM[0])) for p, q in zip(*WARM, strict=True)], (-0.7, 0.4, 0.3), 0.5
)
"""tau (q_tau - p_tau): the square keeps its size."""
HALF_CROSS = -0.5 * math.log(0.3)

ONE_TOKEN = {
    ("kd",): (KD, KD_GRADIENT),
    ("kd", "terms.0.transforms.0.squared=false"): (
        0.5 * 0.0929340638 + HALF_CROSS,
        mix([(g - 0.5 * c) / 2 for g, c in zip(KD_GRADIENT, CROSS, strict=True)], CROSS, 0.5),
    ),
    ("word_kd",): (0.3446178373, FORWARD),
    ("seqkd",): (-math.log(0.3), CROSS),
    ("rkl_kd",): (0.3526532007, REVERSE),
    ("gkd",): (0.0307157710, None),
    ("gkd", "terms.0.divergence=JSD(0.5)"): (0.0842937501, None),
    ("gkd", "terms.0.divergence=JSD(0.9)"): (0.0312532237, None),
    ("f_distill",): (0.4, (-0.21, 0.12, 0.09)),
    ("distillm",): (0.2741615833, (-0.3033469704, 0.1472401593, 0.1561068111)),
    ("distillm", "terms.0.divergence=SkewReverseKL(0.9)"): (0.2774848118, (-0.2850099244, 0.1199590574, 0.1650508669)),
    ("taid",): (0.0574401913, (-0.1588919122, 0.0695951394, 0.0892967728)),
    ("veto",): (0.2981773657, (-0.3655531837, 0.1606322100, 0.2049209738)),
    ("veto", "terms.0.divergence=ReverseKL()"): (0.3110567225, (-0.3323678393, 0.0809626340, 0.2514052053)),
    ("veto", "terms.0.transforms.0.student_weight=0.3"): (0.3268571282, None),
    ("csd",): (0.3226378566, REVERSE),
    ("csd", "terms.0.divergence.temperature=1.5"): (None, (-0.3696267406, 0.1333178051, 0.2363089356)),
    ("csd", "terms.0.divergence.partner=teacher"): (None, (-0.4953848748, 0.2416024016, 0.2537824733)),
    ("csd", "terms.0.divergence.partner=uniform"): (None, (-0.3743096030, 0.1324143255, 0.2418952775)),
    ("selectkd",): (0.3446178373, FORWARD),
    ("selectkd", "plans.0.k=1"): (0.003446178373, [0.01 * g for g in FORWARD]),
    ("selectkd", "plans.0.k=1", "plans.0.rejected=1.0"): (0.3446178373, FORWARD),
    ("lsm",): (0.3526532007, REVERSE),
    ("lsm", "terms.0.transforms.0.k=2"): (0.2842708770, None),
    ("lsm", 'terms.0.transforms.0=TopK(2, rest="unnormalised")'): (0.0230695141, None),
    ("lsm", 'terms.0.transforms.0=TopK(1, rest="unnormalised")'): (-0.2541893581, None),
    ("topk_kd",): (0.3446178373, FORWARD),
}


@pytest.mark.parametrize("case", ONE_TOKEN, ids=" ".join)
def test_one_token(case: tuple[str, ...]) -> None:
    value, gradient = ONE_TOKEN[case]
    found = one_token(*case)
    # Weights of a token are kept in float32: 0.01 is rounded there.
    to = 1e-9 if "plans.0.k=1" not in case else 1e-8
    if value is not None:
        assert found.loss == near(value, to)
    if gradient is not None:
        assert found.gradients[0][0].tolist() == near(gradient, to)
    assert float(found.gradients[0].sum()) == near(0.0), "a constant in the logits says nothing"


def test_gkd_is_a_tenth_of_forward_kl_in_size() -> None:
    """The teacher weighs 0.1; on the other side the same number would be 0.9 of TRL before its PR 3043."""
    forward = torch.tensor(FORWARD, dtype=torch.float64)
    assert float(one_token("gkd").gradients[0].norm() / forward.norm()) == near(0.0869627359)


def test_concrete_scores_gradient_is_reverse_kls_on_any_tokens() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 11, dtype=torch.float64).softmax(-1).tolist()
    csd = step(ALL["csd"], Written(teacher, student, author="dataset")).gradients[0]
    rkl = step(ALL["rkl_kd"], Written(teacher, student, author="dataset")).gradients[0]
    assert torch.allclose(csd, rkl, atol=1e-12)


def test_todi_has_jeffreys_value_and_not_its_gradient() -> None:
    """F3 at its temperature of 2 without the square: the logits' gradient shrinks by 2, which `tempered` undoes."""
    found = one_token("todi", tempered=2.0)
    cross = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64).square()
    cross = cross / cross.sum()
    assert found.loss == near(0.5 * 0.6972710380 - 0.5 * math.log(float(cross[0])))
    text = 2.0 * (cross - torch.tensor([1.0, 0.0, 0.0]))
    own = (found.gradients[0][0] - 0.5 * text) / 0.5
    assert own.tolist() == near((-0.5829878691, 0.2425311659, 0.3404567032))


def test_akl_on_its_own_fixtures() -> None:
    p, q = ((0.4, 0.3, 0.2, 0.1),), ((0.25, 0.1, 0.3, 0.35),)
    assert step(ALL["akl"], Written(p, q, author="dataset")).loss == near(0.3281311605)
    smallest = choose("akl", ["terms.0.divergence.head=smallest_set"])
    assert step(smallest, Written(p, q, author="dataset")).loss == near(0.3219801275)
    p, q = (0.5, 0.2, 0.2, 0.1), (0.1, 0.5, 0.2, 0.2)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        turned = Written([[p[i] for i in order]], [[q[i] for i in order]], author="dataset")
        assert step(ALL["akl"], turned).loss == near(0.4939885513), "the numbering of the vocabulary"


# -- two authors -----------------------------------------------------------------------------------------------------

OTHER = ((0.2, 0.3, 0.5),), ((0.6, 0.3, 0.1),)


def test_distillm2_adds_what_the_teacher_wrote_and_what_the_student_wrote() -> None:
    found = step(ALL["distillm2"], Written(*F3, author="teacher"), Written(*OTHER, author="student"))
    assert found.loss == near(0.6713303920)
    assert found.loss - 0.2741615833 == near(0.3971688088)
    assert found.gradients[0][0].tolist() == near((-0.3033469704, 0.1472401593, 0.1561068111))
    detached = one_token("distillm2", author="student").gradients[0][0]
    assert detached.tolist() == near((-0.3197826516, 0.1281408755, 0.1916417760))
    through = one_token("distillm2", "terms.1.divergence.detached=false").gradients[0][0]
    assert through.tolist() == near((-0.2850099244, 0.1199590574, 0.1650508669))


def test_distillm2_counts_sequences_not_tokens() -> None:
    long = Written(F3[0] * 3, F3[1] * 3, author="teacher")
    found = step(ALL["distillm2"], long, Written(*OTHER, author="teacher"), Written(*OTHER, author="student"))
    skewed = step(ALL["distillm2"], Written(*OTHER, author="teacher")).loss
    assert found.loss == near((0.2741615833 + skewed) / 2 + 0.3971688088, 1e-7)


def test_paced_reads_text_forwards_and_rollouts_backwards() -> None:
    text, own = one_token("paced", author="dataset"), one_token("paced", author="student")
    assert (text.loss, own.loss) == (near(0.3446178373), near(0.3526532007))
    assert text.gradients[0][0].tolist() == near(FORWARD)
    assert own.gradients[0][0].tolist() == near(REVERSE)


def test_paced_weighs_problems_by_how_often_they_are_solved() -> None:
    curriculum, rates = ALL["paced"].curriculum, {"a": 0.25, "b": 0.5, "never": 0.0, "always": 1.0}
    mine = [Written(*F3, problem="a"), Written(*OTHER, problem="b")]
    (a,), (b,) = (curriculum.weigh([w.judged(0)], rates) for w in mine)
    # w(p) = p (1 - p) over its mean among all four; half of them are drawn at all.
    assert (a.weight, b.weight) == (near(0.1875 / 0.109375 / 2), near(0.25 / 0.109375 / 2))
    mine[0].weight, mine[1].weight = a.weight, b.weight
    kl = 0.3526532007, sum(q * math.log(q / p) for p, q in zip(OTHER[0][0], OTHER[1][0], strict=True))
    assert step(ALL["paced"], *mine).loss == near((a.weight * kl[0] + b.weight * kl[1]) / 2, 1e-7)
    alike = choose("paced", ["curriculum.success=0.0", "curriculum.failure=0.0"]).curriculum
    assert alike.weigh([mine[0].judged(0)], rates)[0].weight == mine[0].judged(0).weight


def test_the_text_of_a_teacher_that_is_sure_is_forward_kl() -> None:
    """SeqKD of a one-hot teacher is KD: -log q_y."""
    sure = Written(((1.0 - 2e-13, 1e-13, 1e-13),), F3[1], author="teacher")
    assert step(ALL["seqkd"], sure).loss == near(-math.log(0.3))


# -- entries that are kept ---------------------------------------------------------------------------------------------


def wide(v: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, v, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1))


def test_eopd_adds_forward_kl_where_the_teacher_is_unsure() -> None:
    """H(p) = 0.8018 opens the gate of 0.8, not one of 0.81; the student is not renormalised: -log q(S) on top."""
    policy = -math.log(0.7 / 0.3) * math.log(0.3)
    both = one_token("eopd", "terms.1.transforms.0.k=2").loss
    assert both - policy == near(0.6103372558, 1e-7)
    seen_less = one_token("eopd", 'terms.1.transforms.0=TopK(2, rest="renormalised")').loss - policy
    assert seen_less == near(0.2536623119, 1e-7), "a renormalised student does not see what lies outside"
    assert one_token("eopd", "terms.1.token_weight.threshold=0.81").loss == near(policy, 1e-7)
    assert one_token("eopd").loss - policy == near(0.3446178373, 1e-7), "k = V: forward KL"


def test_eopd_keeps_16_and_lsm_32_and_topk_kd_64_with_their_rest() -> None:
    p, q = wide(80)
    for name, k, term in (("eopd", 16, 1), ("lsm", 32, 0), ("topk_kd", 64, 0)):
        recipe = ALL[name]
        author = "student" if "student" in recipe.rollouts.authors else "dataset"
        found = step(recipe, Written([p.tolist()], [q.tolist()], author=author), words="a" * 80)
        kept = p.topk(k).indices
        tp, tq = p[kept] / p[kept].sum(), q[kept]
        expected = {
            "eopd": (tp * (tp / tq).log()).sum(),
            "lsm": (tq / tq.sum() * (tq / tq.sum() / tp).log()).sum(),
            "topk_kd": (p[kept] * (p[kept] / tq).log()).sum()
            + (1 - p[kept].sum()) * ((1 - p[kept].sum()) / (1 - tq.sum())).log(),
        }[name]
        assert float(found.signal.values[term, 0]) == near(float(expected)), name


# -- what the written token says ---------------------------------------------------------------------------------------


def each_token(name: str, reference=None) -> Outcome:
    """Three rollouts of one token: everything a student of F3 could have written."""
    return step(ALL[name], *(Written(*F3, tokens=(v,), reference=reference) for v in range(3)))


def test_opd_is_reverse_kl_on_average_and_sums() -> None:
    """sum_v q_v A_v = -KL, and the gradient's average is the gradient; three tokens are summed, not averaged."""
    found, q = each_token("opd"), F3[1][0]
    assert sum(w * a for w, a in zip(q, found.advantages(), strict=True)) == near(-0.3526532007)
    mean = sum(w * g[0] for w, g in zip(q, found.gradients, strict=True))
    assert mean.tolist() == near(REVERSE, 1e-7)
    along = step(ALL["opd"], Written(*S3))
    assert along.advantages() == near(RATIO), "nothing is centred, normalised, clipped or carried back"


def test_fast_opd_is_opd_with_a_horizon_that_grows() -> None:
    whole, mean = step(ALL["opd"], Written(*S3)), step(ALL["fast_opd"], Written(*S3))
    assert mean.loss * 3 == near(whole.loss, 1e-6)
    assert [at_start(ALL["fast_opd"], step=k).rollouts.horizon for k in (0, 1, 9, 500)] == [256, 512, 2560, 4096]


def test_g_opd_and_exopd_go_on_beyond_the_teacher() -> None:
    beyond, reference = each_token("exopd", ((0.2, 0.5, 0.3),)), ((0.2, 0.5, 0.3),)
    assert beyond.advantages() == near((1.1604886025, -0.9222198635, -1.3732653608))
    plain = each_token("g_opd", reference)
    assert plain.advantages() == near((0.8472978604, -0.6931471806, -1.0986122887))
    for v, gradient in enumerate(beyond.gradients):
        expected = -beyond.advantages()[v] * (torch.eye(3)[v] - torch.tensor(F3[1][0])) / 3
        assert gradient[0].tolist() == near(expected.tolist(), 1e-7)


def test_iw_opd_weighs_what_comes_before_much_disagreement() -> None:
    """w_t = 1 + (1 - sum_{s<t} |A_s| / sum |A|) / 2: the first token has 1.5 whatever it says."""
    found, size = step(ALL["iw_opd"], Written(*S3)), [abs(a) for a in RATIO]
    weights = [1 + 0.5 * (1 - sum(size[:t]) / sum(size)) for t in range(3)]
    assert weights[0] == 1.5
    assert found.advantages() == near(RATIO)
    assert found.weights() == near(weights)
    surprise = [-math.log(row[0]) for row in S3[1]]
    expected = sum(w * a * s for w, a, s in zip(weights, RATIO, surprise, strict=True)) / 3
    assert found.loss == near(expected, 1e-7)


def white(values) -> list[float]:
    x = torch.tensor(values, dtype=torch.float64)
    return ((x - x.mean()) / (x.var(unbiased=False) + 1e-8).sqrt()).tolist()


def test_minillm_is_the_single_step_exactly_and_the_rest_through_returns() -> None:
    """Tokens of 0.2 p + 0.8 q: q over that is inside the clip. The first token's ratio 0.789 is below 0.8: cut."""
    mixture = [0.2 * p[0] + 0.8 * q[0] for p, q in zip(*S3, strict=True)]
    found = step(ALL["minillm"], Written(*S3, behaviour=mixture))
    advantages = [*white((-0.3465735903, 0.6931471806)), 0.0]  # the last token has no future
    assert found.advantages() == near(advantages)
    expected = []
    for t, (p, q) in enumerate(zip(torch.tensor(S3[0]).double(), torch.tensor(S3[1]).double(), strict=True)):
        ratio = float(q[0]) / mixture[t]
        lower = advantages[t] < 0 and ratio < 0.8
        single = q * ((q / p).log() - (q * (q / p).log()).sum())
        policy = 0.0 if lower else -advantages[t] * ratio * (torch.eye(3)[0] - q)
        expected.append((single + policy) / 3)
        assert lower == (t == 0)
    assert torch.allclose(found.gradients[0], torch.stack(expected), atol=1e-7)


def test_minillm_as_released_is_one_option_away() -> None:
    released = choose("minillm", ["plans.0=ReverseKLToGo(scale=0.5,discount=0.95,own=true)"])
    white_ = (-0.1727426039, -1.1292026262, 1.3019452301)
    assert step(released, Written(*S3)).advantages() == near(white_)
    undiscounted = choose("minillm", ["plans.0=ReverseKLToGo(scale=0.5,own=true)"])
    assert step(undiscounted, Written(*S3)).advantages() == near((-0.1897312403, -1.1188071207, 1.3085383610))


# -- which tokens count ------------------------------------------------------------------------------------------------

PAIR = ((0.7, 0.2, 0.1), (0.4, 0.35, 0.25)), ((0.3, 0.4, 0.3), (0.5, 0.3, 0.2))


def test_adakd_heats_easy_tokens_and_holds_the_heat_fixed() -> None:
    """Float32 temperatures: 1e-7. With a leak the first row would be (-0.16944, 0.06901, 0.10043)."""
    found = step(ALL["adakd"], Written(*PAIR, author="dataset"))
    assert found.loss == near(0.1765636412, 1e-7)
    rows = (-0.1713818171, 0.0698827808, 0.1014990363), (0.0506114225, -0.0262272812, -0.0243841413)
    for row, expected in zip(found.gradients[0].tolist(), rows, strict=True):
        assert row == near(expected, 1e-7)
    (entry,) = found.entries
    assert entry.reading.temperature.tolist() == near((0.6418587944, 1.0))


def test_adakd_with_every_token_and_no_strength_is_reverse_kl() -> None:
    plain = step(choose("adakd", ["plans.1.strength=0.0"]), Written(*PAIR, author="dataset"))
    assert plain.loss == near(step(ALL["rkl_kd"], Written(*PAIR, author="dataset")).loss)
    half = step(choose("adakd", ["plans.0.share=0.5", "plans.1.strength=0.0"]), Written(*PAIR, author="dataset"))
    assert half.loss == near(0.3526532007), "the mean over those that stay"


def test_selectkd_accepts_among_the_teachers_five() -> None:
    """Rejected tokens stay in the denominator. V = 8, and the student's favourite is the teacher's fifth or sixth."""
    teacher = [0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03]
    for favourite, weight in ((4, 1.0), (5, 0.01)):
        student = [0.1] * 8
        student[favourite] = 0.3
        found = step(ALL["selectkd"], Written([teacher] * 2, [student, teacher], author="dataset"))
        forward = sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))
        assert found.weights() == [weight, 1.0]
        assert found.loss == near(weight * forward / 2, 1e-8)


def test_selectkd_by_speculation() -> None:
    """A draw of the student's is accepted with chance 0.6, one of five with 0.98976."""
    n = 4000
    many = Written(F3[0] * n, F3[1] * n, author="dataset")
    found = step(choose("selectkd", ["plans.0.by=speculation"]), many)
    share = sum(w == 1.0 for w in found.weights()) / n
    assert share == pytest.approx(0.98976, abs=5 * math.sqrt(0.98976 * 0.01024 / n))
    assert found.loss == near(0.3446178373 * (share + 0.01 * (1 - share)), 1e-6)


def test_lsm_leaves_out_the_first_of_each_special_text() -> None:
    words = ["<", "think", "x"]
    tokens = (0, 1, 2, 0, 1)
    found = step(ALL["lsm"], Written(F3[0] * 5, F3[1] * 5, tokens=tokens), words=words)
    assert found.weights() == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert found.loss == near(0.6 * 0.3526532007, 1e-7)
