"""How models are compared."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tasks.settings.section import Count, Held, NotNegative, Section


class LlmJudge(Section):
    """A language model behind an OpenAI-compatible server."""

    url: str
    model: Annotated[str, Field(min_length=1)]
    prompts: Count | None

    @field_validator("url")
    @classmethod
    def _is_an_address_alone(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s?#@]+", url):  # not shown in full: it may hold a password
            raise ValueError(
                "it must begin with http:// or https:// and have neither user, password nor query: "
                "a key belongs into the environment (TRUELINE_JUDGE_API_KEY)"
            )
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise ValueError("it has no such port, or a bracket too many: correct its host and port") from None
        return url


class Evaluate(Section):
    """How models are compared."""

    prompts: Count | None
    max_new_tokens: Count
    temperature: NotNegative
    best_of: Held
    bootstrap: Annotated[int, Field(ge=100, le=10**6)]
    confidence: Annotated[float, Field(gt=0.5, le=0.9999)]
    llm_judge: LlmJudge | None
