"""How figures are written for people: one figure has one rounding, wherever it stands."""

from decimal import Decimal

ABSENT = "—"


def number(value: float | None, digits: int = 3, sign: str = "-") -> str:
    """Write a figure, in decimal as files have it: .4875 is .488; a dash where there is none.

    Args:
        value: a share as a part of 1, a score, a loss.
        digits: behind the point.
        sign: `+` to write one before positive figures too.
    """
    return ABSENT if value is None else f"{Decimal(str(value)):{sign}z,.{digits}f}"


def chance(value: float | None) -> str:
    """Write a p-value, which is small and never 0."""
    return "< 0.0001" if value is not None and value < 1e-4 else number(value, 4)
