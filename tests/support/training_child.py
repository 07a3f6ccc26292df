"""What runs in the children of ``training``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.engine.distributed import join
from cxrlt_cli.engine.fit import fit
from cxrlt_cli.engine.parts import Job
from cxrlt_cli.engine.state import read_state
from cxrlt_cli.errors import CxrltError
from cxrlt_cli.events import Advanced, Event, silent
from cxrlt_cli.recipe.schema import Recipe


def main(settings: Mapping[str, Any], run: str, environment: Mapping[str, str], step: int, number: int) -> None:
    """Train; after ``step`` steps send this process the signal ``number``. Exits with the code of a CxrltError."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    seen = 0

    def emit(event: Event) -> None:
        nonlocal seen
        if isinstance(event, Advanced) and event.stage.startswith("epoch"):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), number)

    recipe = Recipe.model_validate(settings)
    try:
        with join(torch.device("cpu")) as (world, device):
            job = Job(recipe, load_prepared(Path(recipe.data.path)), RunDir(Path(run)), device, world)
            fit(job, read_state(Path(run), silent), emit)
    except CxrltError as error:
        (Path(run) / "error.txt").write_text(str(error))
        raise SystemExit(error.code) from error
