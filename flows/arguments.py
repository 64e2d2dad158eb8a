"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as conf/image/digits.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, such as seed=1 or pretraining.fit.epochs=5.")
]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
