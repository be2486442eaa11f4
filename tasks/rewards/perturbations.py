"""Answers made from references and worse than them: what a reward must tell apart, and what must not satisfy it."""

from collections.abc import Callable, Sequence

from tasks.data.records import Prompt

SENTINEL = "The answer is correct."
PADDING = ("well", "so", "and", "then", "indeed", "also")
REFERENCE = "reference"


def other_reference(prompts: Sequence[Prompt]) -> list[str | None]:
    """The reference of the next prompt that has another one; None where all have the same."""
    texts = [prompt.references[0] for prompt in prompts]
    return [
        next((text for text in (*texts[place + 1 :], *texts[:place]) if text not in prompt.references), None)
        for place, prompt in enumerate(prompts)
    ]


def _each(change: Callable[[Prompt], str]) -> Callable[[Sequence[Prompt]], list[str | None]]:
    return lambda prompts: [change(prompt) for prompt in prompts]


def _padding(prompt: Prompt) -> str:
    count = len(prompt.references[0].split())
    return " ".join(PADDING[place % len(PADDING)] for place in range(count))


# By name; to n prompts that have references, n answers, or None where there is none of the kind.
PERTURBATIONS: dict[str, Callable[[Sequence[Prompt]], list[str | None]]] = {
    "other_reference": other_reference,
    "empty": _each(lambda _: ""),
    "prompt": _each(lambda prompt: prompt.prompt[-1]["content"]),
    "padding": _each(_padding),
    "half": _each(lambda prompt: prompt.references[0][: len(prompt.references[0]) // 2]),
    "sentinel": _each(lambda _: SENTINEL),
}
# What says nothing of the prompt's: where it satisfies a reward, a policy learns to say nothing.
SAY_NOTHING = ("empty", "prompt", "sentinel")
