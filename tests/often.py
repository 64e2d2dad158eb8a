"""How often tests that draw by chance do so: a few times, or often as `make chaos` asks."""

import os

SEEDS = int(os.environ.get("WARMSTART_SEEDS", "2"))


OFTEN = "WARMSTART_SEEDS" in os.environ


def times(few: int, each: int) -> int:
    """`few`, or where it is asked to be often `each` for each seed."""
    return each * SEEDS if OFTEN else few
