"""A language model behind an OpenAI-compatible server compares answers, each pair in both positions.

Such judges like what stands first, so a preference counts only where it survives the exchange of the positions.
Source: Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", whose form of verdicts it is too.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from tasks.common.errors import InputError
from tasks.data.records import Message, Prompt
from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.llm_judge.endpoint import AT_ONCE, SETTING, Endpoint
from tasks.evaluation.metrics import mean
from tasks.settings.params import LlmJudge

TEMPLATE = "comparison.txt.j2"
VERDICT = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]", re.IGNORECASE)
LONGEST_REPLY = 512  # tokens
ENOUGH = 0.5  # share of the prompts that must have a verdict: a judge that mostly says nothing has no win rate
EASY = ([Message(role="user", content="What is two plus two?")], "Four.", "Two plus two is five.")
ORDERS = ("candidate_first", "opponent_first")

Letter = Literal["A", "B", "tie"]


class Reading(NamedTuple):
    """What the judge said of two answers in one order."""

    verdict: Letter | None  # None: no reply had one
    replies: list[str]  # the second, where there is one, was asked for because the first had no verdict


class Comparison(NamedTuple):
    """What the judge said of one prompt."""

    prompt: str  # its id
    candidate_first: Reading | None  # None: both answers are the same, and nothing was asked
    opponent_first: Reading | None

    @property
    def outcomes(self) -> list[float | None]:
        """By order, who is better: 1 the candidate, 0 the opponent, a half neither; None: no verdict."""
        points: dict[Letter | None, float | None] = {"A": 1.0, "B": 0.0, "tie": 0.5, None: None}
        ours = points[self.candidate_first.verdict] if self.candidate_first else 0.5
        theirs = points[self.opponent_first.verdict] if self.opponent_first else 0.5
        return [ours, None if theirs is None else 1 - theirs]

    @property
    def outcome(self) -> float | None:
        """Who is better in both orders; a half where they disagree."""
        first, second = self.outcomes
        if first is None or second is None:
            return None
        return first if first == second else 0.5


def check(judge: LlmJudge) -> None:
    """Have the judge decide an easy case, before hours of work wait for its word.

    Raises:
        InputError: the server refuses, or the model gives no verdict even there.
        ConnectionError: the server cannot be reached; TimeoutError: it does not answer.
    """
    with Endpoint(judge.url) as endpoint:
        if _read(endpoint, judge.model, *EASY).verdict is None:
            raise InputError(f"{judge.model} gives no verdict on two answers: name another model in {SETTING}")


def ask(
    judge: LlmJudge,
    prompts: Sequence[Prompt],
    ours: Sequence[str],
    theirs: Sequence[str],
    on_progress: Callable[[int], object],
) -> list[Comparison]:
    """Have the judge compare the two answers to each of n prompts, in both orders.

    Args:
        judge: the settings.
        prompts: n prompts.
        ours: n answers of the candidate.
        theirs: n answers of the opponent.
        on_progress: told the number of prompts done since.

    Raises:
        InputError: the server refuses.
        ConnectionError: it cannot be reached; TimeoutError: it does not answer. What it has said is kept.
    """
    found: list[Comparison] = []
    faults: list[Exception] = []  # the first is why the others gave up

    def compared(job: tuple[Prompt, str, str]) -> Comparison:
        prompt, our, their = job
        if our == their:
            return Comparison(prompt.id, None, None)
        both = ((our, their), (their, our))
        try:
            return Comparison(prompt.id, *(_read(endpoint, judge.model, prompt.prompt, *pair) for pair in both))
        except Exception as error:
            faults.append(error)
            endpoint.give_up()
            raise

    # Whoever is interrupted leaves the pool's threads, which are daemons, where they are: a reply may take minutes.
    with Endpoint(judge.url) as endpoint, ThreadPool(AT_ONCE) as pool:
        try:
            for comparison in pool.imap(compared, zip(prompts, ours, theirs, strict=True)):
                found.append(comparison)
                on_progress(1)
        except Exception as error:
            endpoint.give_up()
            pool.close()
            pool.join()  # what is under way ends by itself: a request must not lose its connection
            raise (faults or [error])[0] from None
    return found


def figures(comparisons: Sequence[Comparison], model: str, resampling: Resampling) -> dict[str, Any]:
    """Sum up the verdicts; there is no win rate where fewer than half of the prompts have one.

    Args:
        comparisons: of n prompts.
        model: the judge's name.
        resampling: how intervals are drawn.
    """
    asked = [each for each in comparisons if each.candidate_first]
    readings = [reading for each in asked for reading in (each.candidate_first, each.opponent_first) if reading]
    decided = [reading.verdict == "A" for reading in readings if reading.verdict in ("A", "B")]
    places = [place for place, each in enumerate(comparisons) if each.outcome is not None]
    told = [each.outcome for each in comparisons if each.outcome is not None]
    enough = told and len(told) >= ENOUGH * len(comparisons)
    return {
        "model": model,
        "prompts": len(comparisons),
        "same_answers": len(comparisons) - len(asked),
        "without_verdict": len(comparisons) - len(told),
        "asked_again": sum(len(reading.replies) > 1 for reading in readings),
        "agreement": mean([each.outcomes[0] == each.outcomes[1] for each in asked if each.outcome is not None]),
        "first_preferred": mean(decided),
        "vs_opponent": win_rate(told, [1 - outcome for outcome in told], resampling.at(places)) if enough else None,
    }


def rows(comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """A row a prompt, to be read: what was said in each order, and the outcome."""
    for each in comparisons:
        readings = zip(ORDERS, (each.candidate_first, each.opponent_first), strict=True)
        yield {
            "id": each.prompt,
            **{order: reading and reading._asdict() for order, reading in readings},
            "outcome": each.outcome,
        }


def _read(endpoint: Endpoint, model: str, conversation: Sequence[Message], first: str, second: str) -> Reading:
    """Ask, and where the reply has no verdict once more."""
    replies, verdict = [], None
    for again in (False, True):
        text = _template().render(conversation=conversation, first=first, second=second, again=again)
        request = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": LONGEST_REPLY}
        replies.append(endpoint.reply({"model": model, **request}))
        verdict = _verdict(replies[-1])
        if verdict:
            break
    return Reading(verdict, replies)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # this is plain text, and what is put in is not read as a template again
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _verdict(reply: str) -> Letter | None:
    """The last verdict of a reply, or one that is all of it."""
    found = VERDICT.findall(reply) or [reply.strip().strip(".*[]\"'")]
    letters: dict[str, Letter] = {"a": "A", "b": "B", "tie": "tie"}
    return letters.get(found[-1].lower())
