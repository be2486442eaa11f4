"""Groups of answers to one prompt: which vary, and what replaces those that do not."""

import pytest
import torch

from tasks.data.encoding.tokens import Encoded
from tasks.learning.ppo.groups import Round, Scored, do_vary, sample_dynamically
from tasks.learning.sampling.sampler import Response


def test_groups_whose_scores_differ_by_rounding_do_not_vary():
    scores = torch.tensor([1.0, 1.0, 0.0, 1.0, 5.0, 5.000001])
    assert do_vary(scores, 2).tolist() == [False, True, False]


def sampler(varies: str, asked: list[Round]):
    """Groups of two, named by their place; a + in `varies` is a group whose scores differ."""

    def sample(each: Round) -> Scored:
        asked.append(each)
        places = range(each.skipped, each.skipped + each.num_prompts)
        answers = [Response(Encoded([place], [k]), torch.empty(0), None) for place in places for k in (0, 1)]
        scores = torch.tensor([float(k and varies[place] == "+") for place in places for k in (0, 1)])
        return Scored(answers, {"rule": scores + 1}, scores)

    return sample


@pytest.mark.parametrize(
    ("varies", "extra", "rounds", "places"),
    [
        ("+-+-", 0, [Round(0, 0, 4)], [0, 1, 2, 3]),  # counted, not replaced
        ("++++", 2, [Round(0, 0, 4)], [0, 1, 2, 3]),
        ("+-+-++", 2, [Round(0, 0, 4), Round(1, 4, 2)], [0, 2, 4, 5]),
        ("+-+--+-", 2, [Round(0, 0, 4), Round(1, 4, 2), Round(2, 6, 1)], [0, 2, 5, 1]),  # 1 fills a place
        ("------------", 2, [Round(0, 0, 4), Round(1, 4, 4), Round(2, 8, 4)], [0, 1, 2, 3]),
    ],
)
def test_groups_that_do_not_vary_are_replaced(varies, extra, rounds, places):
    asked: list[Round] = []
    found = sample_dynamically(sampler(varies, asked), 4, 2, extra)
    assert asked == rounds
    assert [each.row.prompt[0] for each in found.responses] == [place for place in places for _ in (0, 1)]
    assert found.scores["rule"].tolist() == [1.0 + (k and varies[place] == "+") for place in places for k in (0, 1)]
    assert (found.num_prompts, found.num_uniform) == (len(varies), varies.count("-"))
