"""Drift and agreement on answers of which it is known how far they have moved."""

import numpy as np
import pytest

from tasks.evaluation.staleness import FEWEST, Text, agreement, drift

WORDS = [f"word{number}" for number in range(60)]
PROMPTS = 120


def answers(seed: int, *, shift: float = 0.0, length: int = 12, prompts: str = "asked") -> list[Text]:
    """One answer to each prompt, of words drawn alike; a share of them, the shift, only from the first ten."""
    generator = np.random.default_rng(seed)

    def word() -> str:
        return WORDS[generator.integers(10 if generator.random() < shift else len(WORDS))]

    return [
        Text(f"{prompts} {number}", " ".join(word() for _ in range(int(generator.integers(length - 3, length + 4)))))
        for number in range(PROMPTS)
    ]


def test_answers_of_one_kind_are_not_told_apart() -> None:
    figure = drift(answers(1), answers(2, prompts="other"))

    assert figure is not None
    assert figure.value == pytest.approx(0.5, abs=0.14)  # three standard deviations, from 24 other seeds


def test_drift_grows_with_the_shift() -> None:
    learned = answers(1)
    figures = [drift(learned, answers(2, shift=shift, prompts="other")) for shift in (0.0, 0.2, 0.6)]
    values = [figure.value for figure in figures if figure]

    assert values == sorted(values)
    assert len(values) == 3
    assert figures[2] is not None
    assert figures[2].low > 0.9  # 12 words, of which 8 are of ten in place of sixty


def test_length_alone_is_drift() -> None:
    figure = drift(answers(1), answers(2, length=24, prompts="other"))

    assert figure is not None
    assert figure.low > 0.9


def test_the_same_answers_to_the_same_prompts_are_not_learned_by_heart() -> None:
    """Both sides have the same texts: a classifier that had seen a prompt's answers would tell more."""
    learned = [Text(f"prompt {number % 40}", text.answer) for number, text in enumerate(answers(1))]
    figure = drift(learned, learned)

    assert figure is not None
    assert figure.value == pytest.approx(0.5, abs=0.05)  # the folds leave some chance


def test_answers_without_a_word_have_their_length() -> None:
    empty = [Text(f"prompt {number}", "") for number in range(FEWEST)]
    figure = drift(empty, [text._replace(prompt=f"other {text.prompt}") for text in empty])

    assert figure is not None
    assert figure.value == 0.5


def test_too_few_prompts() -> None:
    some = answers(1)
    assert drift(some, answers(2)[: FEWEST - 1]) is None
    assert agreement([text.prompt for text in some[: FEWEST - 1]], range(FEWEST - 1), range(FEWEST - 1)) is None


def test_agreement_is_the_rank_correlation() -> None:
    prompts = [f"prompt {number}" for number in range(50)]
    rising = [float(number) for number in range(50)]
    together = agreement(prompts, rising, [value**3 for value in rising])
    apart = agreement(prompts, rising, [-value for value in rising])

    assert together == pytest.approx((1, 1, 1))
    assert apart == pytest.approx((-1, -1, -1))


def test_agreement_of_unrelated_rewards() -> None:
    generator = np.random.default_rng(3)
    prompts = [f"prompt {number}" for number in range(200)]
    figure = agreement(prompts, generator.normal(size=200).tolist(), generator.normal(size=200).tolist())

    assert figure is not None
    assert figure.low < 0 < figure.high


def test_a_reward_that_tells_nothing_apart() -> None:
    prompts = [f"prompt {number}" for number in range(50)]
    assert agreement(prompts, [1.0] * 50, [float(number) for number in range(50)]) is None


def test_it_is_the_same_every_time() -> None:
    assert drift(answers(1), answers(2)) == drift(answers(1), answers(2))
