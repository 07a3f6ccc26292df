"""Run directories: the paths in one, and finding them."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cxrlt_cli.artifacts.files import read_json
from cxrlt_cli.errors import RunError

#: Version of the run directory; raised when an older reader could not read it.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of a run directory (DESIGN section 6)."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe: exactly what ran."""
        return self.path / "recipe.resolved.yaml"

    @property
    def run_json(self) -> Path:
        """Versions, dataset, seed, device, status, timings."""
        return self.path / "run.json"

    @property
    def model(self) -> Path:
        """Best weights, posterior link and model card."""
        return self.path / "model.safetensors"

    @property
    def ensemble(self) -> Path:
        """What an ensemble has in place of a model: members, how they are combined, and a card."""
        return self.path / "ensemble.safetensors"

    @property
    def weights(self) -> Path:
        """The file that predicts and carries the card: the ensemble where there is one, the model elsewhere."""
        return self.ensemble if self.ensemble.exists() else self.model

    @property
    def last(self) -> Path:
        """Directory of the state an interrupted run continues from."""
        return self.path / "last"

    @property
    def snapshots(self) -> Path:
        """Directory of the epochs that may be averaged at the end; only while training."""
        return self.path / "snapshots"

    def snapshot(self, epoch: int) -> Path:
        """Weights of one epoch, counted from 1."""
        return self.snapshots / f"{epoch:04d}.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def decisions(self) -> Path:
        """Calibration and thresholds."""
        return self.path / "decisions.safetensors"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def predictions(self, split: str, tta: str | None = None) -> Path:
        """Logits of one split; with ``tta``, those made with a test-time augmentation that is not the run's default."""
        views = f".tta-{quote(tta, safe='')}" if tta else ""
        return self.path / "predictions" / f"{split}{views}.parquet"

    def epoch_logits(self, epoch: int) -> Path:
        """Logits (M, C) of dev after one epoch, counted from 1: what the choice of the best epoch was made from."""
        return self.path / "predictions" / "dev-epochs" / f"{epoch:04d}.npy"

    @property
    def tta(self) -> Path:
        """The test-time augmentation that was chosen on dev, and what it was chosen from."""
        return self.path / "tta.json"

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    def in_use(self) -> bool:
        """Whether a process is training in this directory now: it holds a lock on it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def info(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            RunError: run.json is missing, damaged, or of a newer format.
        """
        info = read_json(self.run_json)
        if not isinstance(info, dict) or not isinstance(info.get("format"), int):
            raise RunError("is not the run.json of a run", where=str(self.run_json), cure="The file is damaged.")
        if info["format"] > FORMAT:
            raise RunError(
                f"has format {info['format']}, this cxrlt reads up to {FORMAT}",
                where=str(self.run_json),
                cure="Install a newer cxrlt.",
            )
        return info


def list_runs(root: Path) -> list[RunDir]:
    """Every run directory directly in ``root``, newest first by the time its run.json was written."""
    found = [RunDir(path.parent) for path in root.glob("*/run.json")] if root.is_dir() else []
    return sorted(found, key=lambda run: (-run.run_json.stat().st_mtime_ns, run.path.name))


def find_run(path: Path | None, root: Path = Path("runs"), *, trained: bool = False) -> RunDir:
    """The run at ``path``, or, when ``path`` is None, the newest one in ``root``; with ``trained``, that can predict.

    Raises:
        RunError: there is none, or ``path`` is not a run directory.
    """
    if path is None:
        runs = [run for run in list_runs(root) if run.weights.exists() or not trained]
        if not runs:
            raise RunError(
                "there is no run with weights" if trained else "there is no run",
                where=str(root),
                cure="Train one with `cxrlt train RECIPE`, or name a run directory.",
            )
        return runs[0]
    if not (path / "run.json").is_file():
        what = "is not a run directory (it has no run.json)" if path.is_dir() else "there is no such run directory"
        what = "is a file, and a run is a directory" if path.is_file() else what
        raise RunError(what, where=str(path), cure="`cxrlt runs list` shows the runs here.")
    return RunDir(path)
