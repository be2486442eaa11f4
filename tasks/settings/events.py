"""What is reported to people, and when a reward model counts as stale. No stage reads these."""

from typing import Annotated

from pydantic import Field

from tasks.settings.choices import EventKind
from tasks.settings.section import Section


class Notify(Section):
    """Which events are reported."""

    events: list[EventKind]
    stuck_minutes: Annotated[int, Field(ge=1, le=100_000)]
