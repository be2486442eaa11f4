"""Whether an answer follows instructions that a program can check, named as in IFEval (Zhou et al. 2023).

A row has the names of its instructions and, for each, a mapping of its details. Own code, after the paper's table 2.
language:response_language is not among them: it needs a detector of languages.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import score_by_key

READ = 50_000  # characters of an answer
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
SENTENCE_END = re.compile(r"[.!?\u3002]+")
ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|e\.g|i\.e|inc|ltd|co|no)\.|(?<=\d)\.(?=\d)", re.I)
PARAGRAPHS, BLOCKS, TURNS = re.compile(r"\*\*\*"), re.compile(r"\n\s*\n"), re.compile(r"\*{6}")
BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-(?!-))\s*\S", re.MULTILINE)
HIGHLIGHT = re.compile(r"(?<!\*)\*\*?([^*\n]*[^*\s][^*\n]*)\*\*?(?!\*)")
FENCE = re.compile(r"^```(?:json)?\s*|\s*```$", re.IGNORECASE)
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
Details = Mapping[str, Any]


def instructions(
    answers: Sequence[str],
    columns: Sequence[Mapping[str, Any]],
    *,
    column: str = "instruction_id_list",
    details: str = "kwargs",
    partial: bool = False,
    otherwise: float | None = None,
) -> list[float]:
    """Score n answers: 1 where all instructions are followed, else 0. An empty answer follows none.

    Args:
        answers: the texts.
        columns: the rows' extra columns.
        column: the one that holds the list of the instructions' names, such as length_constraints:number_words.
        details: the one that holds their details, such as {"relation": "at least", "num_words": 100}, in their order.
        partial: give the share of the instructions that are followed.
        otherwise: the score for rows without instructions.

    Raises:
        InputError: a row has no instructions, and `otherwise` is not set; or one is unknown, or lacks a detail.
    """

    def score(answer: str, names: Any, row: Mapping[str, Any]) -> float:  # noqa: ANN401 - whatever a row holds
        given = row.get(details)
        if not isinstance(names, list) or not names or not isinstance(given, list) or len(given) != len(names):
            raise InputError(f"its row needs a list {quoted(column)} and one as long, {quoted(details)}: correct it")
        checks = [_check(name, detail) for name, detail in zip(names, given, strict=True)]
        text = answer[:READ].strip()
        followed = [bool(text) and check(text) for check in checks]
        return sum(followed) / len(followed) if partial else float(all(followed))

    return score_by_key(score, answers, [()] * len(answers), columns, column=column, otherwise=otherwise)


def _check(name: object, details: object) -> Callable[[str], bool]:
    """The check of one instruction, for a text with something in it."""
    found = INSTRUCTIONS.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(f"{quoted(name)} is no instruction that can be checked ({', '.join(INSTRUCTIONS)}): remove it")
    given = {key: value for key, value in details.items() if value is not None} if isinstance(details, Mapping) else {}

    def check(text: str) -> bool:
        try:
            return found(text, given)
        except KeyError as error:
            raise InputError(f"the instruction {name} lacks {error} in its details: give it") from None
        except (TypeError, ValueError, AttributeError):
            raise InputError(f"the details of the instruction {name} are {quoted(given)}: correct them") from None

    return check


def _compare(count: int, relation: str, limit: float) -> bool:
    if relation not in {"less than", "at least"}:
        raise ValueError(relation)
    return count < int(limit) if relation == "less than" else count >= int(limit)


def _count(text: str, phrase: str) -> int:
    """How often a word or phrase occurs, as whole words, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE))


def _words(text: str) -> list[str]:
    return WORD.findall(text)


def _sentences(text: str) -> int:
    parts = SENTENCE_END.split(ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text))
    return sum(WORD.search(part) is not None for part in parts)


def _paragraphs(text: str, by: re.Pattern[str]) -> list[str]:
    """The parts of a text, none of them empty; those at the ends may be missing."""
    parts = [part.strip() for part in by.split(text)]
    while parts and not parts[0]:
        parts.pop(0)
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _number_paragraphs(text: str, details: Details) -> bool:
    parts = _paragraphs(text, PARAGRAPHS)
    return all(parts) and len(parts) == int(details["num_paragraphs"])


def _first_word(text: str, details: Details) -> bool:
    parts = [part for part in _paragraphs(text, BLOCKS) if part]
    place = int(details["nth_paragraph"])
    if len(parts) != int(details["num_paragraphs"]) or not 1 <= place <= len(parts):
        return False
    words = _words(parts[place - 1])
    return bool(words) and words[0].casefold() == details["first_word"].casefold()


def _letter_frequency(text: str, details: Details) -> bool:
    letter = details["letter"].casefold()
    if len(letter) != 1:
        raise ValueError(letter)
    return _compare(text.casefold().count(letter), details["let_relation"], details["let_frequency"])


def _postscript(text: str, details: Details) -> bool:
    marker = re.escape(details["postscript_marker"].strip()).replace(r"\.", r"\.\s?")
    return re.search(rf"^[ \t]*{marker}\s*\S", text, re.IGNORECASE | re.MULTILINE) is not None


def _sections(text: str, details: Details) -> bool:
    head = rf"^[^\w\n]*{re.escape(details['section_spliter'].strip())}\s?\d+"
    return len(re.findall(head, text, re.IGNORECASE | re.MULTILINE)) >= int(details["num_sections"])


def _json(text: str, _: Details) -> bool:
    try:
        json.loads(FENCE.sub("", text))
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, _: Details) -> bool:
    inner = [line.partition("<<")[2].rpartition(">>")[0] for line in text.splitlines()]
    return any(title.strip("<> ") for title in inner)


def _two_responses(text: str, _: Details) -> bool:
    parts = _paragraphs(text, TURNS)
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats_prompt(text: str, details: Details) -> bool:
    """The prompt first, and then an answer."""
    prompt = details["prompt_to_repeat"].strip().casefold()
    return text.casefold().startswith(prompt) and bool(text[len(prompt) :].strip())


def _capital_words(text: str, details: Details) -> bool:
    count = sum(word.isupper() for word in _words(text))
    return _compare(count, details["capital_relation"], details["capital_frequency"])


def _ends(text: str, details: Details) -> bool:
    return text.strip("\"' \n").casefold().endswith(details["end_phrase"].strip().casefold())


INSTRUCTIONS: dict[str, Callable[[str, Details], bool]] = {
    "keywords:existence": lambda text, of: all(_count(text, word) for word in _list(of["keywords"])),
    "keywords:forbidden_words": lambda text, of: not any(_count(text, word) for word in _list(of["forbidden_words"])),
    "keywords:frequency": lambda text, of: _compare(_count(text, of["keyword"]), of["relation"], of["frequency"]),
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_sentences": lambda text, of: _compare(
        _sentences(text), of["relation"], of["num_sentences"]
    ),
    "length_constraints:number_words": lambda text, of: _compare(len(_words(text)), of["relation"], of["num_words"]),
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, of: (
        len(re.findall(r"\[[^\[\]\n]+\]", text)) >= int(of["num_placeholders"])
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda text, of: len(BULLET.findall(text)) == int(of["num_bullets"]),
    "detectable_format:number_highlighted_sections": lambda text, of: (
        len(HIGHLIGHT.findall(text)) >= int(of["num_highlights"])
    ),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": lambda text, _: any(choice in text for choice in CHOICES),
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends,
    "startend:quotation": lambda text, _: len(text) > 2 and text[0] == text[-1] == '"',
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, _: text.isupper(),
    "change_case:english_lowercase": lambda text, _: text.islower(),
    "punctuation:no_comma": lambda text, _: not re.search("[,\uff0c\u060c\u3001]", text),
}


def _list(words: object) -> list[str]:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(words)
    return words
