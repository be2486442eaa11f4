"""A reward in code: does an answer give the number of the customer's order? The reward model cannot copy numbers.

A second reward beside it, in params.yaml under rewards.training:
`{name: order_number, source: "infra/example/order_number.py:right_number", options: {}, weight: 1.0}`
"""

import re
from collections.abc import Mapping, Sequence

NUMBER = re.compile(r"\d+")


def right_number(prompts: Sequence[Sequence[Mapping[str, str]]], answers: Sequence[str]) -> list[float]:
    """Give 1 for each answer whose one number is that of its prompt; 0 for one that only repeats the prompt."""
    return [_is_right(prompt[-1]["content"], answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _is_right(question: str, answer: str) -> float:
    return float(question not in answer and NUMBER.findall(answer) == NUMBER.findall(question))
