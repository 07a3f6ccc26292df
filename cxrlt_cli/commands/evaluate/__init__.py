"""``cxrlt evaluate``: what predictions are worth. Loads no torch where the predictions are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from cxrlt_cli.commands.evaluate import html
from cxrlt_cli.commands.evaluate.compare import Comparison, comparisons, same_images
from cxrlt_cli.commands.evaluate.data import everything
from cxrlt_cli.commands.evaluate.foreign import Files, read_files
from cxrlt_cli.commands.evaluate.gap_kept import kept
from cxrlt_cli.commands.evaluate.html import Wanted
from cxrlt_cli.commands.evaluate.of_run import Asked, predicted
from cxrlt_cli.commands.evaluate.scored import Predicted, Scored, Settings, score
from cxrlt_cli.commands.evaluate.show import blocks
from cxrlt_cli.commands.opening import open_run
from cxrlt_cli.errors import UsageError
from cxrlt_cli.events import Emit, Notice, Result, silent
from cxrlt_cli.metrics import Absent

__all__ = ["Files", "Predicted", "Scored", "Settings", "Wanted", "evaluated", "files_of", "refuse", "run", "run_files"]


def run(
    runs: Sequence[Path],
    *,
    split: str = "dev",
    absent: Absent = "skip",
    resamples: int = 1000,
    seed: int = 0,
    tta: str | None = None,
    data: Path | None = None,
    report: html.Wanted = html.NONE,
    emit: Emit = silent,
) -> Result:
    """Evaluate runs on a split of the dataset each was trained on.

    Args:
        runs: run directories, shown in this order, compared with the first; none for the newest run.
        split: "train", "dev" or "test".
        absent: what classes without positives count as in mAP and F1: "skip" leaves them out, "zero" counts 0.
        resamples: of the patients, for intervals; 0 for none.
        seed: of the resamples.
        tta: predictions made with this test-time augmentation instead of the run's own.
        data: the dataset to take instead, if it has moved or is another one.
        report: the HTML report wanted.
        emit: told about progress.

    Returns:
        Every figure as ``data``; tables for people as ``blocks``.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    html.check(report, len(runs) or 1)
    asked, settings = Asked(split, data, tta), Settings(absent, resamples, seed)
    scored = evaluated(runs, asked, settings, emit)
    head = {"split": split, "absent": absent, "resamples": resamples, "seed": seed, "same_images": same_images(scored)}
    place = html.place_of(scored[0].of, asked) if len(scored) == 1 else None
    about = html.Place(settings, split, place)
    worth = kept(scored[0].of, place, emit) if place is not None and not report.none else None
    write = partial(html.write, wanted=report, place=about, emit=emit, worth=worth)
    return _result(scored, head, split, lambda compared: write(scored, compared))


def evaluated(runs: Sequence[Path], asked: Asked, settings: Settings, emit: Emit = silent) -> list[Scored]:
    """The runs with their labels, predictions, figures and replicates: what ``run`` shows, as arrays."""
    paths: list[Path | None] = [*runs] or [None]
    scored = score([predicted(open_run(path), asked, emit) for path in paths], settings, emit)
    if not same_images(scored):
        emit(Notice("the runs were evaluated on different images: differences between them mean little", "warning"))
    return scored


def refuse(needed: str, options: Mapping[str, object]) -> None:
    """Make sure that options which mean something with ``needed`` only were not given without it.

    Raises:
        UsageError: the name of one that was.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} goes with {needed} only", cure="Leave it out.")


def files_of(predictions: Path | None, labels: Path | None, train: Path | None, runs: Sequence[Path]) -> Files:
    """The tables that were given.

    Raises:
        UsageError: one of the two needed is missing, or runs were given as well.
    """
    if predictions is None or labels is None:
        lacking = "--predictions" if predictions is None else "--labels"
        raise UsageError(
            f"{lacking} is missing",
            cure="Give both: `cxrlt evaluate --predictions FILE --labels FILE`; or neither, to evaluate a run.",
        )
    if runs:
        raise UsageError("--predictions takes the place of runs", where=str(runs[0]), cure="Leave one of them out.")
    return Files(predictions, labels, train)


def run_files(
    files: Files,
    *,
    absent: Absent = "skip",
    resamples: int = 1000,
    seed: int = 0,
    report: html.Wanted = html.NONE,
    emit: Emit = silent,
) -> Result:
    """Evaluate posteriors of any program against a label table.

    Args:
        files: the tables.
        absent, resamples, seed, report, emit: as in ``run``.

    Raises:
        DataError: the tables do not fit together, or hold what is no label or no probability.
    """
    html.check(report, 0)
    settings = Settings(absent, resamples, seed)
    scored = score([read_files(files, emit)], settings, emit)
    head: dict[str, object] = {"absent": absent, "resamples": resamples, "seed": seed}
    about = html.Place(settings)
    return _result(scored, head, str(files.labels), lambda compared: html.write(scored, compared, report, about, emit))


def _result(
    scored: Sequence[Scored],
    head: dict[str, object],
    split: str,
    report: Callable[[Sequence[Comparison]], Path | None],
) -> Result:
    compared = comparisons(scored)
    written = report(compared)
    found = {"report": str(written)} if written else {}
    return Result(head | everything(scored, compared) | found, blocks(scored, compared, split))
