"""Seeds of unrelated random streams, derived from the one of the settings."""

import hashlib


def seed_for(seed: int, purpose: str, iteration: int) -> int:
    """Derive an unrelated seed for one purpose in one iteration, so that no generator's state has to be saved."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{iteration}".encode()).digest()
    return int.from_bytes(digest[:6])
