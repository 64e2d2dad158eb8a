"""Python's collector of unreachable cycles, kept from walking over what prefect, mlflow and torch are made of.

A full collection looks at every object there is: with all libraries loaded 0.4 s, and nine of them while they load, 1.7 s in all.
"""

from __future__ import annotations

import gc


def pause() -> None:
    """Collects nothing while libraries load, until `resume`."""
    gc.disable()


def resume() -> None:
    """Collects again, but passes over what there is by now. Does nothing where it was not paused: what is dead there would stay."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
