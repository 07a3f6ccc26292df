"""Commands that use runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cxrlt_cli.cli.arguments import Data, Device
from cxrlt_cli.events import Emit, Result

Calibration = Annotated[
    Literal["none", "temperature", "platt", "beta", "isotonic"] | None,
    typer.Option(metavar="NAME", help="none, temperature, platt, beta or isotonic; default: the recipe's."),
]
Threshold = Annotated[
    str | None,
    typer.Option(
        metavar="RULE", help="expected-f1, searched-f1, prevalence, target-recall=R, target-precision=P or 0.5."
    ),
]


def evaluate(
    emit: Emit,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Run directories; default: the newest run.")
    ] = None,
    *,
    split: Annotated[str, typer.Option(metavar="dev|test|train", help="Which images.")] = "dev",
    absent: Annotated[
        Literal["skip", "zero"],
        typer.Option(metavar="skip|zero", help="Classes without positives: named and left out, or scored 0."),
    ] = "skip",
    data: Data = None,
) -> Result:
    """Score runs: mAP, AUROC, F1, calibration.

    Overall, for each class, and for head, medium and tail; several runs side by side.
    """
    from cxrlt_cli.commands.evaluate import run

    return run(runs or [], split=split, absent=absent, data=data, emit=emit)


def predict(
    emit: Emit,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|FILE|DIR",
            help="First the run directory (it holds a run.json; default: the newest run), then images and folders.",
        ),
    ] = None,
    *,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="A split of the run's dataset, no files.")] = None,
    tta: Annotated[
        str | None,
        typer.Option(metavar="NAME|auto", help="Test-time augmentation; auto: the one worth its cost on dev."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Use views the training never saw.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help=".csv or .parquet file.")] = None,
    submission: Annotated[bool, typer.Option("--submission", help="Write the form of CXR-LT 2026.")] = False,
    data: Data = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images per forward pass.")] = None,
    calibration: Calibration = None,
    threshold: Threshold = None,
    target_prevalence: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|CLASS=VALUE,...|estimate",
            help="How frequent findings are among these images; posteriors and thresholds follow.",
        ),
    ] = None,
) -> Result:
    """Logits, posteriors and decisions for images.

    The images are files and folders, or a split of the dataset the run was trained on.
    """
    from cxrlt_cli.commands.predict import run

    run_dir, inputs = _run_and_inputs(paths or [])
    return run(
        run_dir,
        inputs,
        split=split,
        tta=tta,
        force=force,
        out=out,
        submission=submission,
        data=data,
        device=device,
        batch_size=batch_size,
        calibration=calibration,
        threshold=threshold,
        target_prevalence=target_prevalence,
        emit=emit,
    )


def decide(
    emit: Emit,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run directory; default: the newest run.")] = None,
    *,
    calibration: Calibration = None,
    threshold: Threshold = None,
    data: Data = None,
) -> Result:
    """Fit calibration and thresholds on dev anew, and keep them.

    Training does so at its end; this is for another calibration or threshold, or for labelled images of your own.
    """
    from cxrlt_cli.commands import decide

    return decide.run(run, calibration=calibration, threshold=threshold, data=data, emit=emit)


def _run_and_inputs(paths: list[Path]) -> tuple[Path | None, list[Path]]:
    """The run and the images among the paths of ``predict``: a first path with a run.json in it is the run."""
    if paths and (paths[0] / "run.json").is_file():
        return paths[0], paths[1:]
    return None, paths
