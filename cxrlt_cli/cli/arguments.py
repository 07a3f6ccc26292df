"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, as in optim.lr=3e-4. Repeats."),
]
Data = Annotated[Path | None, typer.Option(help="Prepared dataset, if it has moved since training.", metavar="DIR")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:K.")]
