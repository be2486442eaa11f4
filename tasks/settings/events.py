"""What is reported to people, and when a reward model counts as stale. No stage reads these."""

from typing import Annotated

from pydantic import Field

from tasks.settings.choices import EventKind
from tasks.settings.section import Count, Section, Share


class Notify(Section):
    """Which events are reported."""

    events: list[EventKind]
    stuck_minutes: Annotated[int, Field(ge=1, le=100_000)]


class Freshness(Section):
    """When the reward model counts as stale."""

    max_drift: Share
    min_agreement: Annotated[float, Field(ge=-1, le=1)]
    max_age_days: Count | None
