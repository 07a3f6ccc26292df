"""What is known about a run's dev and test images, gathered for ``evaluate --gap``. Never loads torch by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import read_lines, read_predictions
from cxrlt_cli.commands.evaluate.gap_exact import exact_labels
from cxrlt_cli.commands.evaluate.of_run import Asked, aligned, predicted, why_again
from cxrlt_cli.commands.evaluate.scored import Predicted
from cxrlt_cli.commands.learned_from import seen
from cxrlt_cli.commands.opening import OpenRun, column, open_dataset, open_link, split_rows
from cxrlt_cli.commands.run_decisions import decisions_of, judged
from cxrlt_cli.commands.target_prevalence import parse_target
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.decisions import ENOUGH_TO_ESTIMATE, Decisions, estimate_prevalence
from cxrlt_cli.errors import DataError
from cxrlt_cli.events import Emit, silent
from cxrlt_cli.gap import BUILT_IN, Decided, Dev, Target
from cxrlt_cli.metrics import average_precision, mean_defined

Labels = npt.NDArray[np.int8]
Rows = npt.NDArray[np.int64]

#: Share of the target's images whose view dev may lack: they are passed over.
FEW_VIEWS = 0.05


@dataclass(frozen=True, slots=True)
class Sought:
    """What gap is to be explained.

    Attributes:
        split: where the score was made.
        target: the split it shall hold for.
        data: a dataset other than the run's.
        tta: a test-time augmentation other than the run's.
        exact: a table of labels better than the dataset's.
        prevalence: the target's prevalence, as ``--target-prevalence`` has it.
    """

    split: str = "dev"
    target: str = "test"
    data: Path | None = None
    tta: str | None = None
    exact: Path | None = None
    prevalence: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Everything ``gap`` needs, and what the target really shows.

    Attributes:
        dev: where the score was made.
        target: what it shall hold for.
        of: the predictions of dev as ``evaluate`` scores them.
        real: the predictions of the target with its best labels; None without labels or predictions.
        notes: where prevalence and exact labels are from.
    """

    dev: Dev
    target: Target
    of: Predicted
    real: Dev | None
    notes: tuple[str, ...]


def gathered(run: OpenRun, sought: Sought, emit: Emit) -> Gathered:
    """Read it.

    Raises:
        CxrltError: the run, its dataset or a table cannot be used.
    """
    of = predicted(run, Asked(sought.split, sought.data, sought.tta), emit)
    prepared = open_dataset(run, sought.data, silent, images=False)
    rows = split_rows(run, prepared, sought.split, silent)
    why: dict[str, str] = {}
    decisions = decisions_of(run, tta=sought.tta, data=sought.data, emit=silent)
    exact, source = exact_labels(run, prepared, rows, sought.exact)
    if exact is None:
        why["labels"] = "no exact labels are known; give them with --exact-labels"
    elif not ((exact != UNKNOWN) & (of.labels != UNKNOWN)).any():
        exact, why["labels"] = None, f"{source} holds no label of these images"
    epochs, kept = _epochs(run, of, prepared, sought, why)
    dev = Dev(
        classes=of.classes,
        labels=of.labels,
        scores=of.scores,
        patients=of.owners,
        fitted=_fitted(run, of, decisions, why),
        honest=Decided(of.posteriors, of.decisions),
        epochs=epochs,
        decide=None if epochs is None else _decider(run, of, prepared, decisions, epochs),
        kept=kept,
        unseen=_unseen(run, of, prepared, why),
        exact=exact,
        views=of.view,
    )
    target, real, from_where = _target(run, prepared, sought, exact=exact is not None, why=why, decisions=decisions)
    notes = ((f"exact labels: {source}",) if exact is not None else ()) + from_where
    return Gathered(dev, target, of, real, notes)


# -- dev -----------------------------------------------------------------------------------------------------------


def _fitted(run: OpenRun, of: Predicted, decisions: Decisions | None, why: dict[str, str]) -> Decided:
    """What calibration and thresholds give on the very images they were fitted on."""
    how = of.about["decisions"]
    assert isinstance(how, Mapping)
    if decisions is not None and how["how"] == "cross-fitted":
        link = open_link(run)
        log_odds = of.scores.astype(np.float64) if link is None else link.log_odds_of(of.scores.astype(np.float32))
        posteriors = decisions.calibrated(log_odds)
        return Decided(posteriors, decisions.decide(posteriors))
    if decisions is None or how["how"] == "none":
        why["decisions"] = f"{BUILT_IN}: nothing was fitted; findings are called from 0.5 on"
    else:
        why["decisions"] = f"{BUILT_IN}: calibration and thresholds were {how['how']}, not on these images"
    return Decided(of.posteriors, of.decisions)


def _decider(
    run: OpenRun, of: Predicted, prepared: Prepared, decisions: Decisions | None, epochs: npt.NDArray[np.floating]
) -> Callable[[int], Decided]:
    """What calibration and thresholds, fitted as for the kept epoch, would have given after another one.

    All go through the link of the kept epoch. With deferred re-weighting that of an early epoch was another one; the
    calibration that follows takes up the difference.
    """
    link = open_link(run)

    def decide(epoch: int) -> Decided:
        logits = epochs[epoch]
        log_odds = logits.astype(np.float64) if link is None else link.log_odds_of(logits.astype(np.float32))
        return Decided(
            *judged(run, decisions, (prepared, "dev"), labels=of.labels, log_odds=log_odds, patients=of.owners)
        )

    return decide


def _unseen(run: OpenRun, of: Predicted, prepared: Prepared, why: dict[str, str]) -> npt.NDArray[np.bool_] | None:
    known = next((each.values for each in of.columns if each.by == "patient"), None)
    if known is None:
        why["patients"] = "the dataset the run was trained on is not at hand, so its patients cannot be compared"
        return None
    if not any(of.patient_id):
        why["patients"] = "the dataset does not know its patients"
        return None
    unseen = np.array([value == "unseen" for value in known])
    if unseen.all():
        how = "" if prepared.content_hash == run.card.dataset else ", going by identifiers"
        why["patients"] = f"{BUILT_IN}: no patient of these images is in training{how}"
    elif not unseen.any():
        why["patients"] = "every patient of these images is in training, so there is none to compare with"
    return unseen


def _epochs(
    run: OpenRun, of: Predicted, prepared: Prepared, sought: Sought, why: dict[str, str]
) -> tuple[npt.NDArray[np.floating] | None, int]:
    """(E, N, C) logits of dev after every epoch, and which epoch was kept."""
    name = "checkpoint"
    if sought.split != "dev" or prepared.content_hash != run.card.dataset:
        why[name] = f"{BUILT_IN}: the epoch was not chosen on these images"
    elif run.ensemble is not None or run.info.get("kind", "train") != "train":
        why[name] = "only a trained network keeps what every epoch said about dev"
    elif run.info.get("average"):
        why[name] = "the weights are an average of epochs, not the best of them"
    elif sought.tta not in (None, run.card.tta["name"]) or of.about["tta"] != "none":
        why[name] = "epochs are compared without test-time augmentation, these predictions are made with it"
    if name in why:
        return None, 0
    lines = read_lines(run.dir.metrics)
    paths = [run.dir.epoch_logits(int(line["epoch"])) for line in lines]
    if len(lines) == 1 and lines[0]["epoch"] == run.card.epoch:
        why[name] = f"{BUILT_IN}: there was one epoch"
        return None, 0
    try:
        found = np.stack([np.load(path, allow_pickle=False) for path in paths])
    except (OSError, ValueError):
        found = np.empty((0, 0, 0))
    if not _agree(found, [line.get("macro_ap") for line in lines], of.labels):
        why[name] = "the run did not keep what each epoch said about dev (predictions/dev-epochs)"
        return None, 0
    return found, [int(line["epoch"]) for line in lines].index(run.card.epoch)


def _agree(logits: npt.NDArray[np.floating], scores: Sequence[float | None], labels: Labels) -> bool:
    """Whether the logits of the epochs have the scores that training noted."""
    if not len(logits) or logits.shape[1:] != labels.shape:
        return False
    again = [float(mean_defined(average_precision(labels, each))) for each in logits]
    return all(old is not None and abs(new - old) < 1e-9 for new, old in zip(again, scores, strict=True))


# -- the target ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _There:
    """The images of the target split.

    Attributes:
        every: their rows of the dataset.
        left: which of them count.
    """

    every: Rows
    left: npt.NDArray[np.bool_]

    @property
    def rows(self) -> Rows:
        """Rows of those that count."""
        return self.every[self.left]


def _target(
    run: OpenRun, prepared: Prepared, sought: Sought, *, exact: bool, why: dict[str, str], decisions: Decisions | None
) -> tuple[Target, Dev | None, tuple[str, ...]]:
    """The images of the target split, what they really show, and where what is known of them is from."""
    there, notes = _there(run, prepared, sought)
    labels, real = _real(run, prepared, there, sought, exact)
    prevalence, source = _prevalence(run, prepared, there, sought, decisions=decisions, labels=labels)
    if prevalence is None:
        why["prevalence"] = source
    if not len(there.rows):
        why["views"] = why["size"] = f"the dataset has no split {sought.target!r}"
        return Target(prevalence=prevalence, why=why), None, ()
    shares = _views(column(prepared.frame, "view", there.rows), sought, prepared, run, why)
    if prevalence is not None:
        notes = (f"prevalence of {sought.target}: {source}", *notes)
    if exact:
        notes += _how_exact(run, prepared, there, sought)
    return Target(len(there.rows), prevalence, shares, why), real, notes


def _how_exact(run: OpenRun, prepared: Prepared, there: _There, sought: Sought) -> tuple[str, ...]:
    """What the target's labels are where dev has exact ones, unless all of them are exact."""
    better = exact_labels(run, prepared, there.rows, sought.exact)[0]
    images = 0 if better is None else int((better != UNKNOWN).any(axis=1).sum())
    if images == len(there.rows) or not prepared.labels[there.rows].size:
        return ()
    which = f"{images:,} of the {len(there.rows):,} images" if images else "no image"
    text = f"there are exact labels for {which} of {sought.target}; elsewhere those of the dataset are taken for exact"
    return (text,)


def _there(run: OpenRun, prepared: Prepared, sought: Sought) -> tuple[_There, tuple[str, ...]]:
    """The images of the target; where some are of patients in training and others not, the others."""
    try:
        every = split_rows(run, prepared, sought.target, silent)
    except DataError:
        every = np.empty(0, np.int64)
    known = seen(run, prepared, *(column(prepared.frame, name, every) for name in ("image_id", "patient_id")))
    if known is None or not known.any():
        return _There(every, np.ones(len(every), bool)), ()
    if known.all():
        text = f"all patients of {sought.target} are in training: what they show is no score for new patients"
        return _There(every, known), (text,)
    text = f"{known.sum():,} of the {len(every):,} images of {sought.target} are of patients in training: left out"
    return _There(every, ~known), (text,)


def _views(
    there: Sequence[str], sought: Sought, prepared: Prepared, run: OpenRun, why: dict[str, str]
) -> dict[str, float] | None:
    """The target's share of each view, where the images of dev can stand for them."""
    here = set(column(prepared.frame, "view", split_rows(run, prepared, sought.split, silent)))
    if set(there) == {""}:
        why["views"] = "the dataset does not know its views"
        return None
    shares = {name: count / len(there) for name, count in Counter(there).items()}
    lacking = {name: share for name, share in shares.items() if name not in here}
    if sum(lacking.values()) > FEW_VIEWS:
        named = ", ".join(name or "not stated" for name in sorted(lacking))
        why["views"] = f"{sought.split} has none of the views {named}, {sum(lacking.values()):.0%} of {sought.target}"
        return None
    return {name: share for name, share in shares.items() if name in here}


def _real(
    run: OpenRun, prepared: Prepared, there: _There, sought: Sought, exact: bool
) -> tuple[Labels | None, Dev | None]:
    """The target's best labels, and its predictions beside them where both are there."""
    order = [prepared.classes.index(name) for name in run.card.classes]
    labels = prepared.labels[there.rows][:, order]
    if exact:
        better = exact_labels(run, prepared, there.rows, sought.exact)[0]
        labels = labels if better is None else np.where(better != UNKNOWN, better, labels).astype(np.int8)
    if not len(there.rows) or (labels == UNKNOWN).all():
        return None, None
    path = run.predictions(prepared, sought.target, sought.tta)
    scorable = (prepared.labels[there.every] != UNKNOWN).any()
    if not scorable or not path.exists() or why_again(run, path):
        return labels, None
    made, left = predicted(run, Asked(sought.target, sought.data, sought.tta), silent), there.left
    owners = [name for name, counts in zip(made.owners, left.tolist(), strict=True) if counts]
    decided = Decided(made.posteriors[left], made.decisions[left])
    return labels, Dev(made.classes, labels, made.scores[left], owners, decided, decided)


def _prevalence(
    run: OpenRun,
    prepared: Prepared,
    there: _There,
    sought: Sought,
    *,
    decisions: Decisions | None,
    labels: Labels | None,
) -> tuple[npt.NDArray[np.float64] | None, str]:
    """The target's prevalence (C,) and where it is from, or None and why it is not known."""
    stated = None if sought.prevalence is None else parse_target(sought.prevalence, run.card.classes)
    if stated is not None and stated.stated is not None:
        return stated.stated, "as stated"
    if stated is None and labels is not None:
        known, positive = (labels != UNKNOWN).sum(axis=0), (labels == 1).sum(axis=0)
        return np.where(known > 0, positive / np.maximum(known, 1), np.nan), "its labels"
    path = run.predictions(prepared, sought.target, sought.tta)
    if decisions is None or not len(there.rows) or not path.exists() or why_again(run, path):
        missing = "no predictions" if stated is not None else "neither labels nor predictions"
        return None, (
            f"{missing} of {sought.target} are there; state it with --target-prevalence, or "
            f"predict: cxrlt predict RUN --split {sought.target}"
        )
    if len(there.rows) < ENOUGH_TO_ESTIMATE:
        return None, f"{len(there.rows)} images are too few to estimate it from predictions"
    logits = aligned(run, read_predictions(path), column(prepared.frame, "image_id", there.every), path)
    link = open_link(run)
    log_odds = logits.astype(np.float64) if link is None else link.log_odds_of(logits)
    log_odds = log_odds[there.left]
    return estimate_prevalence(decisions.log_odds(log_odds), decisions.prevalence), "estimated from its predictions"
