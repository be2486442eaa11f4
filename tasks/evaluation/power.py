"""How many prompts a comparison needs."""

import math
from statistics import NormalDist

POWER = 0.8  # chance that so many prompts show the effect


def prompts_needed(effect: float, deviation: float, confidence: float) -> int | None:
    """How many prompts would show that a mean over prompts differs from a value, with a power of 80 %.

    The usual normal approximation: n = ((z_confidence + z_power) deviation / effect)^2.

    Args:
        effect: by how much it differs.
        deviation: of a single prompt's figure.
        confidence: of the interval that is to exclude the value.

    Returns:
        None where there is no effect, or none that is known: no number of prompts would do. None, too, without a
        deviation, from which nothing follows: so few prompts were looked at that all came out alike.
    """
    if not abs(effect) > 0 or not deviation > 0:  # NaN is neither
        return None
    quantiles = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil((quantiles * deviation / effect) ** 2)
