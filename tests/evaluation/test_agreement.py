"""Agreement as published, and worked by hand."""

import random

import pytest

from tasks.evaluation.people.agreement import Rating, cohen_kappa, krippendorff_alpha


def ratings(**labels):
    """Labels by annotator, an item a character; "." is missing."""
    return [
        Rating(name, f"{item:02}", label)
        for name, given in labels.items()
        for item, label in enumerate(given)
        if label != "."
    ]


# The nominal examples of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability". By its formula
# alpha = ((n - 1) agreeing - chance) / (n (n - 1) - chance), with n labels that others stand beside, of which so many
# agree, and chance = the sum over labels of n_label (n_label - 1).
@pytest.mark.parametrize(
    ("given", "alpha", "published"),
    [
        # 14 zeros, 6 ones, six items alike: (19 * 12 - (14 * 13 + 6 * 5)) / (20 * 19 - 212)
        (ratings(meg="0100000010", owen="1110010000"), 16 / 168, 0.095),
        # a 4, b 6, c 6, d 6, e 2, nine items alike: (23 * 18 - (4 * 3 + 3 * 6 * 5 + 2)) / (24 * 23 - 104)
        (ratings(ben="aabbdcccedda", gerry="babbbccceddd"), 310 / 448, 0.692),
        # four people and gaps: 40 labels, 32 of them agreeing: (39 * 32 - 344) / (40 * 39 - 344)
        (ratings(a="123321412...", b="1233224125.3", c=".3332342251.", d="12332441251."), 904 / 1216, 0.743),
    ],
)
def test_alpha_as_published(given, alpha, published):
    assert krippendorff_alpha(given) == pytest.approx(alpha)
    assert round(alpha, 3) == published


def test_alpha_leaves_out_what_one_person_rated():
    both = ratings(meg="0100000010", owen="1110010000")
    more = [*both, Rating("meg", "more", "0"), Rating("cleo", "other", "2")]
    assert krippendorff_alpha(more) == krippendorff_alpha(both)


@pytest.mark.parametrize("given", [ratings(a="lll", b="lll"), ratings(a="lr.", b="..r"), ratings(a="lrs"), []])
def test_no_alpha_where_nothing_was_shared_or_distinguished(given):
    assert krippendorff_alpha(given) is None
    assert cohen_kappa(given) is None


def test_alpha_of_full_agreement_and_of_guesses():
    assert krippendorff_alpha(ratings(a="lrlrs", b="lrlrs", c="lrlrs")) == 1
    guess = random.Random(1)
    given = {name: "".join(guess.choices("lrs", k=4000)) for name in ("a", "b", "c")}
    # the deviation of alpha is about 1 / sqrt(4000 * 3 pairs * 2) = .0065
    assert krippendorff_alpha(ratings(**given)) == pytest.approx(0, abs=0.02)


def test_kappa_of_two_people():
    # 50 items: both l 20, l and r 5, r and l 10, both r 15. They agree on 35/50 = .7; by chance on
    # 25/50 * 30/50 + 25/50 * 20/50 = .5; kappa = (.7 - .5) / (1 - .5) = .4
    one, two = "l" * 25 + "r" * 25, "l" * 20 + "r" * 5 + "l" * 10 + "r" * 15
    assert cohen_kappa(ratings(ann=one, ben=two)) == pytest.approx(0.4)
    assert cohen_kappa(ratings(ann=one + "lll", ben=two + "...")) == pytest.approx(0.4)
    assert cohen_kappa(ratings(ann=one, ben=two, cleo="l" * 50)) is None
