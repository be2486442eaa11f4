"""A language model behind an OpenAI-compatible server compares answers, each pair in both positions.

LLM judges prefer the answer in the first position, so a preference counts only where it holds in both positions.
Source: Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", whose verdict format this uses.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from tasks.common.chat_endpoint import AT_ONCE, SETTING, Endpoint
from tasks.common.errors import InputError
from tasks.common.files import REPORTS, write_jsonl
from tasks.common.progress import Bar
from tasks.data.records import Message, Prompt
from tasks.data.tool_calls import message_as_text
from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.metrics import mean
from tasks.settings.params import LlmJudge

TEMPLATE = "comparison.txt.j2"
VERDICT = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]", re.IGNORECASE)
LONGEST_REPLY = 512  # tokens
ENOUGH = 0.5  # share of the prompts that must have a verdict for a win rate
EASY = ([Message(role="user", content="What is two plus two?")], "Four.", "Two plus two is five.")
REPLIES = REPORTS / "evaluate" / "llm_judge.jsonl"
ORDERS = ("candidate_first", "opponent_first")

Letter = Literal["A", "B", "tie"]


class Judgement(NamedTuple):
    """The verdict of the LLM judge on two answers in one order."""

    verdict: Letter | None  # None: no reply had one
    replies: list[str]  # the second, where there is one, was asked for because the first had no verdict


class Comparison(NamedTuple):
    """The judgements of one prompt."""

    prompt: str  # its id
    candidate_first: Judgement | None  # None: both answers are the same, and nothing was asked
    opponent_first: Judgement | None

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


def check(judge: LlmJudge, setting: str = SETTING) -> None:
    """Ask the LLM judge for an easy verdict, before hours of work are done that need it.

    Args:
        judge: the settings.
        setting: what messages tell the user to correct.

    Raises:
        InputError: the server refuses, or the model gives no verdict even there.
        ConnectionError: the server cannot be reached; TimeoutError: it does not answer.
    """
    with Endpoint(judge.url, setting=setting) as endpoint:
        if _read(endpoint, judge.model, *EASY).verdict is None:
            raise InputError(f"{judge.model} gives no verdict on two answers: name another model in {setting}")


def compare(
    judge: LlmJudge, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str], resampling: Resampling
) -> dict[str, Any]:
    """Have the judge compare two answers to each of the first `judge.prompts` prompts; write its replies, sum them up.

    Args:
        judge: the settings.
        prompts: n prompts.
        ours: n answers of the candidate.
        theirs: n answers of the opponent.
        resampling: how intervals are drawn.

    Raises:
        InputError: the server refuses.
        ConnectionError: it cannot be reached; TimeoutError: it does not answer. Its replies so far are saved.
    """
    asked = prompts[: judge.prompts]
    count = len(asked)
    with Bar("evaluate: LLM judge", count, "prompt") as bar:
        found = ask(judge, asked, ours[:count], theirs[:count], bar.update)
    write_jsonl(REPLIES, comparison_rows(found))
    return summarise_comparisons(found, judge.model, resampling.at(range(count)))


def ask(
    judge: LlmJudge,
    prompts: Sequence[Prompt],
    ours: Sequence[str],
    theirs: Sequence[str],
    on_progress: Callable[[int], object],
    *,
    setting: str = SETTING,
) -> list[Comparison]:
    """Have the judge compare the two answers to each of n prompts, in both orders.

    Args:
        judge: the settings.
        prompts: n prompts.
        ours: n answers of the candidate.
        theirs: n answers of the opponent.
        on_progress: called with the number of prompts done since.
        setting: what messages tell the user to correct.

    Raises:
        InputError: the server refuses.
        ConnectionError: it cannot be reached; TimeoutError: it does not answer. Its replies so far are saved.
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

    # An interrupt leaves the pool's threads, which are daemons, as they are: a reply may take minutes.
    with Endpoint(judge.url, setting=setting) as endpoint, ThreadPool(AT_ONCE) as pool:
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


def summarise_comparisons(comparisons: Sequence[Comparison], model: str, resampling: Resampling) -> dict[str, Any]:
    """Sum up the verdicts; there is no win rate where fewer than half of the prompts have one.

    Args:
        comparisons: of n prompts.
        model: the judge's name.
        resampling: how intervals are drawn.
    """
    asked = [each for each in comparisons if each.candidate_first]
    judgements = [one for each in asked for one in (each.candidate_first, each.opponent_first) if one]
    decided = [one.verdict == "A" for one in judgements if one.verdict in ("A", "B")]
    places = [place for place, each in enumerate(comparisons) if each.outcome is not None]
    outcomes = [each.outcome for each in comparisons if each.outcome is not None]
    enough = outcomes and len(outcomes) >= ENOUGH * len(comparisons)
    return {
        "model": model,
        "prompts": len(comparisons),
        "same_answers": len(comparisons) - len(asked),
        "without_verdict": len(comparisons) - len(outcomes),
        "asked_again": sum(len(one.replies) > 1 for one in judgements),
        "agreement": mean([each.outcomes[0] == each.outcomes[1] for each in asked if each.outcome is not None]),
        "first_preferred": mean(decided),
        "vs_opponent": win_rate(outcomes, [1 - outcome for outcome in outcomes], resampling.at(places))
        if enough
        else None,
    }


def comparison_rows(comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """Give a row a prompt: the judgement in each order, and the outcome."""
    for each in comparisons:
        judgements = zip(ORDERS, (each.candidate_first, each.opponent_first), strict=True)
        yield {
            "id": each.prompt,
            **{order: one and one._asdict() for order, one in judgements},
            "outcome": each.outcome,
        }


def _read(endpoint: Endpoint, model: str, conversation: Sequence[Message], first: str, second: str) -> Judgement:
    """Ask, and where the reply has no verdict once more."""
    replies, verdict = [], None
    turns = [{"role": message["role"], "content": message_as_text(message)} for message in conversation]
    for again in (False, True):
        text = _template().render(conversation=turns, first=first, second=second, again=again)
        request = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": LONGEST_REPLY}
        replies.append(endpoint.reply({"model": model, **request}))
        verdict = _verdict(replies[-1])
        if verdict:
            break
    return Judgement(verdict, replies)


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
