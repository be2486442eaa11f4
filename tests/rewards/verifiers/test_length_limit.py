from typing import Any

import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "length_limit"


@pytest.mark.parametrize(("count", "score"), [(0, 0), (1, 0), (2, 0.5), (3, 1), (5, 1), (6, 0.5), (7, 0), (10**5, 0)])
def test_within_the_limits_it_is_1_and_falls_over_the_margin(count: int, score: float):
    assert scored(NAME, "word " * count, shortest=3, longest=5, margin=2) == score


@pytest.mark.parametrize(("count", "score"), [(0, 1), (5, 1), (6, 0)])
def test_without_a_margin_it_is_all_or_nothing(count: int, score: float):
    assert scored(NAME, "word " * count, longest=5) == score


@pytest.mark.parametrize(("count", "score"), [(0, 0), (6, 0), (7, -0.25), (8, -0.5), (10, -1), (11, -1)])
def test_the_penalty_is_daposs(count: int, score: float):
    # Yu et al. 2025, equation 13: L_max 10, L_cache 4: ((10 - 4) - |y|) / 4 between 6 and 10
    assert scored(NAME, "", ids=[1] * count, longest=10, margin=4, unit="tokens", form="penalty") == score


def test_characters_are_counted_as_people_count_letters():
    assert scored(NAME, "\u00e9t\u00e9", longest=3, unit="characters") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"longest": 3, "shortest": 4},
        {"longest": 3, "shortest": 1, "form": "penalty"},
        {"longest": 3, "margin": 4, "form": "penalty"},
    ],
)
def test_limits_that_contradict_each_other_are_refused(options: dict[str, Any]):
    with pytest.raises(InputError, match="its limits contradict each other"):
        scored(NAME, "a", **options)


@pytest.mark.parametrize("options", [{}, {"longest": -1}, {"longest": 3, "unit": "pages"}])
def test_options_of_no_sense_are_refused(options: dict[str, Any]):
    with pytest.raises(InputError, match=r"^length_limit(: the option| asks for longest)"):
        scored(NAME, "a", **options)
