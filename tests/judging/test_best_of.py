from itertools import combinations

import numpy as np
import pytest

from tasks.judging.best_of import best_of


def test_it_is_the_mean_over_all_subsets():
    generator = np.random.default_rng(3)
    rewards, gold = generator.normal(size=(2, 5, 6)).tolist()
    for found in best_of(rewards, gold):
        chosen = [
            max(subset, key=lambda place: own[place]) for own in rewards for subset in combinations(range(6), found.n)
        ]
        subsets = len(chosen) // 5
        of_prompt = [number // subsets for number in range(len(chosen))]
        pairs = list(zip(of_prompt, chosen, strict=True))
        assert found.reward == pytest.approx(np.mean([rewards[prompt][place] for prompt, place in pairs]))
        assert found.gold == pytest.approx(np.mean([gold[prompt][place] for prompt, place in pairs]))


def test_one_answer_is_the_model_itself_and_the_kl_is_the_bound():
    found = best_of([[1.0, 3.0, 2.0, 0.0]], None)
    assert [each.n for each in found] == [1, 2, 4]
    assert (found[0].kl, found[0].reward, found[0].gold) == (0.0, 1.5, None)
    assert found[1].kl == pytest.approx(np.log(2) - 0.5)
    assert found[2].reward == 3.0
