"""Commands that use runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cxrlt_cli.cli.arguments import Data, Device
from cxrlt_cli.events import Emit, Result

Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
_METHODS = "none, temperature, platt, beta or isotonic"
_RULES = "expected-f1, searched-f1, prevalence, target-recall=R, target-precision=P or 0.5"


def evaluate(
    emit: Emit,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Run directories; default: the newest run.")
    ] = None,
    *,
    split: Annotated[
        str | None, typer.Option(metavar="dev|test|train", help="Which images of the run's dataset; default: dev.")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(metavar="NAME", help="Predictions with another test-time augmentation than the run's.")
    ] = None,
    absent: Annotated[
        Literal["skip", "zero"],
        typer.Option(metavar="skip|zero", help="Classes without positives: named and left out, or scored 0."),
    ] = "skip",
    resamples: Annotated[int, typer.Option(min=0, metavar="N", help="Of the patients, for intervals; 0: none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the resamples.")] = 0,
    data: Data = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Posteriors of any program, in place of runs.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="The labels they are scored against.")] = None,
    train_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The training label table, for head, medium and tail.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the HTML report goes; one run keeps its own."),
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML report.")] = False,
    gap: Annotated[bool, typer.Option("--gap", help="How far dev flatters test, reason by reason.")] = False,
    target: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="With --gap: what the score shall hold for; default: test.")
    ] = None,
    exact_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --gap: better labels of some or all of the images.")
    ] = None,
    target_prevalence: Annotated[
        str | None,
        typer.Option(metavar="FILE|CLASS=VALUE,...|estimate", help="With --gap: how frequent findings are there."),
    ] = None,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="Show in the report what spoke for wrong decisions (Grad-CAM).")
    ] = False,
) -> Result:
    """Score runs, or predictions of any program.

    mAP, AUROC, F1 and calibration with 95 % intervals: overall, by class, for head, medium and tail, for subsets.
    Several runs are compared with the first. `--predictions FILE --labels FILE` scores tables, without a run.
    `--gap` tells what a run's dev score is worth on test.
    """
    from cxrlt_cli.commands import evaluate as command

    wanted = command.Wanted(report, no_report, heatmaps)
    if gap:
        from cxrlt_cli.commands.evaluate import gap_run
        from cxrlt_cli.commands.evaluate.gap_inputs import Sought

        sought = Sought(split or "dev", target or "test", data, tta, exact_labels, target_prevalence)
        return gap_run.run(
            runs or [],
            sought,
            absent=absent,
            resamples=resamples,
            seed=seed,
            report=wanted,
            tables=(predictions, labels, train_labels),
            emit=emit,
        )
    command.refuse(
        "--gap", {"--target": target, "--exact-labels": exact_labels, "--target-prevalence": target_prevalence}
    )
    if predictions is None and labels is None and train_labels is None:
        return command.run(
            runs or [],
            split=split or "dev",
            absent=absent,
            resamples=resamples,
            seed=seed,
            tta=tta,
            data=data,
            report=wanted,
            emit=emit,
        )
    command.refuse("a run", {"--split": split, "--tta": tta, "--data": data})
    files = command.files_of(predictions, labels, train_labels, runs or [])
    return command.run_files(files, absent=absent, resamples=resamples, seed=seed, report=wanted, emit=emit)


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
    calibration: Annotated[
        Method | None, typer.Option(metavar="NAME", help=f"{_METHODS}; default: as the run keeps it.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="RULE", help=f"{_RULES}; default: as the run keeps it.")
    ] = None,
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

    run_dir, inputs = _run_and_inputs(paths or [], split)
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


def ensemble(
    emit: Emit,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories, at least two.")],
    *,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="greedy, mean, logit-mean, rank, weighted, geometric or stacking."),
    ] = "greedy",
    split: Annotated[str, typer.Option(metavar="dev|test", help="The labelled images to combine on.")] = "dev",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run directory; default: ensemble-METHOD, beside the first."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the folds and the resamples.")] = 0,
    resamples: Annotated[int, typer.Option(min=0, metavar="N", help="Of the patients, for intervals; 0: none.")] = 1000,
    data: Data = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; what was there is moved aside.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the members; write nothing.")] = False,
) -> Result:
    """Combine runs, from their predictions, and say what it gains.

    The result is a run directory that `evaluate` and `predict` take. Gains are out of fold: over the best single
    member and over the plain mean.
    """
    from cxrlt_cli.commands import ensemble

    return ensemble.run(
        runs,
        method=method,
        split=split,
        out=out,
        seed=seed,
        resamples=resamples,
        data=data,
        fresh=fresh,
        dry_run=dry_run,
        emit=emit,
    )


def decide(
    emit: Emit,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run directory; default: the newest run.")] = None,
    *,
    calibration: Annotated[
        Method | None, typer.Option(metavar="NAME", help=f"{_METHODS}; default: the recipe's.")
    ] = None,
    threshold: Annotated[str | None, typer.Option(metavar="RULE", help=f"{_RULES}; default: the recipe's.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Prepared dataset whose dev split to take; default: the run's.")
    ] = None,
) -> Result:
    """Fit calibration and thresholds on dev anew, and keep them.

    Training does so at its end; this is for another calibration or threshold, or for labelled images of your own.
    """
    from cxrlt_cli.commands import decide

    return decide.run(run, calibration=calibration, threshold=threshold, data=data, emit=emit)


def _run_and_inputs(paths: list[Path], split: str | None) -> tuple[Path | None, list[Path]]:
    """The run and the images among the paths of ``predict``.

    A first path with a run.json in it is the run; beside a split, which needs no images, so is one that is not there.
    """
    if paths and ((paths[0] / "run.json").is_file() or (split and not paths[0].exists())):
        return paths[0], paths[1:]
    return None, paths
