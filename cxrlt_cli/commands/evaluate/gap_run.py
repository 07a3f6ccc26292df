"""``cxrlt evaluate --gap RUN``: how far dev flatters test, reason by reason. Loads no torch where predictions exist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxrlt_cli.commands.evaluate import html
from cxrlt_cli.commands.evaluate.gap_inputs import Gathered, Sought, gathered
from cxrlt_cli.commands.evaluate.gap_kept import keep
from cxrlt_cli.commands.evaluate.gap_show import Found, blocks, everything, worth
from cxrlt_cli.commands.evaluate.of_run import Asked
from cxrlt_cli.commands.evaluate.scored import Settings, score
from cxrlt_cli.commands.opening import open_run
from cxrlt_cli.data.manifest import SPLITS
from cxrlt_cli.errors import DataError, UsageError
from cxrlt_cli.events import Emit, Finished, Result, Started, silent
from cxrlt_cli.gap import FEWEST, FIGURES, Gap, Judged, gap, judged_classes, point
from cxrlt_cli.metrics import Absent, mean_defined


def run(
    runs: Sequence[Path],
    sought: Sought,
    *,
    absent: Absent = "skip",
    resamples: int = 1000,
    seed: int = 0,
    report: html.Wanted = html.NONE,
    tables: Sequence[Path | None] = (),
    emit: Emit = silent,
) -> Result:
    """Explain the gap between two splits of a run.

    Args:
        runs: one run directory, or none for the newest run.
        sought: which gap.
        absent: what classes without positives count as in the other figures of the report; the gap leaves them out.
        resamples: of the patients of dev, at least 2.
        seed: of the resamples.
        report: the HTML report wanted: that of the evaluation of the split, with the waterfalls in it.
        tables: of other programs, which are refused: they say nothing about training.
        emit: told about progress.

    Returns:
        Every waterfall as ``data``; tables for people as ``blocks``.

    Raises:
        UsageError: there are several runs, tables, too few resamples, or nothing between the two splits.
        CxrltError: whatever else is wrong, with its cure.
    """
    if any(tables):
        raise UsageError(
            "--gap is about a run: tables do not tell how it was trained and decided",
            where=str(next(filter(None, tables))),
            cure="Leave out --predictions, --labels and --train-labels. Better labels are given with --exact-labels.",
        )
    html.check(report, 1)
    found = explained(runs, sought, resamples=resamples, seed=seed, emit=emit)
    written = None if report.none else _reported(found, Settings(absent, resamples, seed), report, emit)
    return Result(everything(found) | ({"report": str(written)} if written else {}), blocks(found))


def _reported(found: Found, settings: Settings, report: html.Wanted, emit: Emit) -> Path | None:
    sought = found.sought
    own = html.place_of(found.of, Asked(sought.split, sought.data, sought.tta))
    keep(found, own, emit)
    place = html.Place(settings, sought.split, own)
    return html.write(score([found.of], settings, emit), [], report, place, emit, worth=worth(found))


def explained(
    runs: Sequence[Path], sought: Sought, *, resamples: int = 1000, seed: int = 0, emit: Emit = silent
) -> Found:
    """The same as numbers, for reports: see ``gap_show.gap_waterfall``."""
    if len(runs) > 1:
        raise UsageError("--gap takes one run", where=str(runs[1]), cure="Ask for each run by itself.")
    if resamples < 2:
        raise UsageError(f"{resamples} resamples are too few for --gap", where="--resamples", cure="Give 1000.")
    if sought.split == sought.target:
        raise UsageError(
            f"{sought.target!r} is on both sides of the gap", where="--target", cure="Give two different splits."
        )
    if sought.target not in SPLITS:
        raise UsageError(
            f"there is no split {sought.target!r}", where="--target", cure=f"Choose from {', '.join(SPLITS)}."
        )
    opened = open_run(runs[0] if runs else None)
    known = gathered(opened, sought, emit)
    if not judged_classes(known.dev, known.target).any():
        both = known.dev.exact is not None
        raise DataError(
            f"no class has {FEWEST} patients with the finding on {sought.split} and a positive on {sought.target}"
            + ", and exact labels of both kinds" * both,
            where=str(opened.dir.path),
            cure="Give a larger split, or exact labels of more images." if both else "Give a larger split.",
        )
    emit(Started("gap", 1, unit="waterfalls"))
    made = gap(known.dev, known.target, resamples=resamples, seed=seed)
    emit(Finished("gap"))
    return Found(str(opened.dir.path), known.of, sought, made, _observed(known, made), known.notes)


def _observed(known: Gathered, made: Gap) -> dict[str, float]:
    """The figures of the target's own labels and predictions, for the classes that were judged."""
    if known.real is None:
        return {}
    some = known.real.select(np.isin(np.array(known.real.classes), made.classes))
    figures = point(Judged(some.labels, some.scores, *some.honest))
    return {name: float(mean_defined(figures[name])) for name in FIGURES}
