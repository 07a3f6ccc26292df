"""What tests of commands on a run start from. A module that asks for ``run`` has a fixture ``made`` of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.data.manifest import Prepared


@pytest.fixture
def prepared(made: tuple[Prepared, Path]) -> Prepared:
    """The dataset of the module's ``made``: a dataset and the directory of a run on it, which tests only read."""
    return made[0]


@pytest.fixture
def run(made: tuple[Prepared, Path], tmp_path: Path) -> RunDir:
    """A copy of the run for this test alone, in the place where the newest run is looked for."""
    return RunDir(Path(shutil.copytree(made[1], tmp_path / "runs" / "tiny")))
