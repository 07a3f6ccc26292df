"""A broken plugin package hurts the recipe that names it, and nobody else. Every command is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = "data: {{path: nowhere}}\nmodel: {{backbone: {{name: net}}}}\nloss: {loss}\n"

GOOD = "def loss(stats, *, scale: float = 1.0): ...\ndef net(in_chans, image_size): ...\n"


def distribution(site: Path, name: str, entry_points: str, **modules: str) -> None:
    info = site / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages: one good, one whose import fails."""
    site = tmp_path / "site"
    distribution(site, "good", "[cxrlt.losses]\nfine = good:loss\n[cxrlt.backbones]\nnet = good:net\n", good=GOOD)
    broken = "import torch_from_another_world\n"
    distribution(
        site, "broken", "[cxrlt.losses]\nbroken = broken:build\n[cxrlt.heads]\nbad = broken:b\n", broken=broken
    )
    return site


@pytest.fixture
def torn(site: Path) -> Path:
    """The same with a package whose entry points are no entry points, and which has lost its metadata."""
    distribution(site, "torn", "[cxrlt.losses]\nthis is not an entry point\n")
    (site / "torn-1.5.dist-info" / "METADATA").unlink()
    return site


def cxrlt(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "cxrlt_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=site.parent, env=environment, check=False)


def recipe(site: Path, loss: str) -> str:
    (site.parent / "r.yaml").write_text(RECIPE.format(loss=loss))
    return "r.yaml"


def test_the_recipe_that_names_it_is_told_everything(site: Path) -> None:
    done = cxrlt(site, "train", recipe(site, "broken"))
    assert done.returncode == 4
    assert done.stdout == ""
    for text in (
        "r.yaml:3:1",
        "loss 'broken' (broken:build, of broken 1.5) cannot be loaded",
        "ModuleNotFoundError: No module named 'torch_from_another_world'",
        "uninstall broken",
    ):
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_does_not_name_it_is_well(site: Path) -> None:
    done = cxrlt(site, "recipe", "validate", recipe(site, "{name: fine, scale: 2}"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "r.yaml: valid\n", "")


def test_listing_is_well_and_says_what_is_torn(torn: Path) -> None:
    done = cxrlt(torn, "plugins", "list")
    assert done.returncode == 0
    for name in ("fine", "broken", "ldam"):
        assert name in done.stdout
    assert "the entry points of torn 1.5 cannot be read" in " ".join(done.stdout.split())


def test_recipes_are_well_beside_torn_metadata(torn: Path) -> None:
    assert cxrlt(torn, "recipe", "validate", recipe(torn, "fine")).returncode == 0


def test_the_doctor_names_it(site: Path) -> None:
    done = cxrlt(site, "doctor")
    assert done.returncode == 0
    assert "broken (BROKEN)" in done.stdout
    assert "fine (BROKEN)" not in done.stdout
    assert "torch_from_another_world" in done.stdout


def test_verbose_shows_the_traceback_of_the_import(site: Path) -> None:
    done = cxrlt(site, "plugins", "show", "broken", "-v")
    assert done.returncode == 4
    assert "Traceback" in done.stderr
    assert "broken.py" in done.stderr


def test_a_second_owner_of_a_name_is_told_apart(site: Path) -> None:
    distribution(site, "rival", "[cxrlt.losses]\nfine = rival:loss\n", rival=GOOD)
    done = cxrlt(site, "recipe", "validate", recipe(site, "fine"))
    assert done.returncode == 4
    assert "the loss 'fine' is registered by good 1.5 and rival 1.5" in done.stderr
    assert "Say which one: good:fine or rival:fine." in done.stderr
    assert cxrlt(site, "recipe", "validate", recipe(site, "rival:fine")).returncode == 0


def test_a_plugin_that_prints_while_it_is_imported_cannot_spoil_json(site: Path) -> None:
    distribution(site, "loud", "[cxrlt.losses]\nloud = loud:loss\n", loud="print('hello')\n" + GOOD)
    done = cxrlt(site, "plugins", "list", "--json")
    assert done.returncode == 0
    assert done.stdout.startswith("{")
