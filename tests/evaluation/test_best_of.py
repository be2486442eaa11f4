from itertools import combinations

import numpy as np
import pytest

from tasks.evaluation.best_of import best_of


def test_it_is_the_mean_over_all_subsets():
    generator = np.random.default_rng(3)
    scores = dict(zip(("reward", "held_out", "ground_truth"), generator.normal(size=(3, 5, 6)).tolist(), strict=True))
    others = dict(zip(scores, generator.normal(size=(3, 5)).tolist(), strict=True))
    for found in best_of(scores, others):
        for prompt in range(5):
            rewards = scores["reward"][prompt]
            chosen = [max(subset, key=rewards.__getitem__) for subset in combinations(range(6), found.n)]
            for name, values in scores.items():
                own = [values[prompt][place] for place in chosen]
                assert found.scores[name][prompt] == pytest.approx(np.mean(own))
                beaten = [value > others[name][prompt] for value in own]
                assert found.wins[name][prompt] == pytest.approx(np.mean(beaten))


def test_one_answer_is_the_model_itself_and_the_kl_is_the_bound():
    found = best_of({"reward": [[1.0, 3.0, 2.0, 0.0]]}, {"reward": [2.0]})
    assert [each.n for each in found] == [1, 2, 4]
    assert (found[0].kl, found[0].scores) == (0.0, {"reward": [1.5]})
    # of the four answers one wins, one ties, two lose
    assert found[0].wins == {"reward": [(1 + 0.5) / 4]}
    assert found[1].kl == pytest.approx(np.log(2) - 0.5)
    assert (found[2].scores, found[2].wins) == ({"reward": [3.0]}, {"reward": [1.0]})
