"""``--tta auto``: try every strategy on dev, choose by the rule of ``tta_choice``, and remember the choice."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import Predictions, read_json, write_json, write_predictions
from cxrlt_cli.bootstrap import p_text
from cxrlt_cli.commands.network import check_finite, try_views, view_logits
from cxrlt_cli.commands.opening import OpenRun, column, open_dataset, open_link, split_rows, stamp
from cxrlt_cli.commands.run_decisions import SPLIT, chosen_on
from cxrlt_cli.commands.strategies import strategy_of, unseen
from cxrlt_cli.commands.tta_choice import Choice, Trial, choose, measurements
from cxrlt_cli.data.manifest import Prepared, load_prepared
from cxrlt_cli.decisions import patient_codes
from cxrlt_cli.errors import CxrltError, DataError, RunError
from cxrlt_cli.events import Advanced, Emit, Finished, Notice, Started, Table
from cxrlt_cli.wording import SIGNED, between, figure

if TYPE_CHECKING:
    from cxrlt_cli.contracts import TestTimeAugmentation, View
    from cxrlt_cli.engine.infer import Setting

    Strategies = dict[str, TestTimeAugmentation]

#: Raised when the rule changes, so that choices by an older one are made anew.
FORMAT = 1
PLAIN, FOLDS, RESAMPLES, SEED = "none", 5, 1000, 0
#: Where an object lies in memory, as its ``repr`` has it.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The strategy to use, and why.

    Attributes:
        name: of the strategy.
        data: what ``tta.json`` holds.
        again: whether it was remembered, not made now.
    """

    name: str
    data: Mapping[str, Any]
    again: bool

    def table(self) -> Table:
        """Costs and benefits, the cheapest first."""
        rows = [_row(one, self.name) for one in self.data["strategies"]]
        rows += [(name, "", "", "", "", "", reason) for name, reason in self.data["left_out"].items()]
        columns = ("test-time augmentation", "views", "mAP", "gain", "95 % interval", "p (Holm)", "")
        title = f"on {SPLIT}, {self.data['images']:,} images" if self.data["images"] else ""
        return Table(columns, tuple(rows), title=title, note=_note(self.data, self.again))


def choose_tta(run: OpenRun, setting: Setting, *, force: bool, data: Path | None, emit: Emit) -> Chosen:
    """The strategy that is worth its cost on the dev images of the run's own dataset.

    Every installed strategy whose views the network can read takes part, with its default options, or the recipe's
    where it is the recipe's own; those that rank images against each other do not. A view that several share is
    computed once. The choice is kept in the run directory and used again for the same weights, data and strategies; so
    are its predictions of dev, for calibration and thresholds of its own.

    Args:
        run: the run.
        setting: how the network is run.
        force: also try views that training never saw.
        data: where the dataset may be, if it has moved; another dataset than the run's own is not used.
        emit: told about progress.

    Raises:
        CxrltError: the dataset, or labels of its dev split, are not there; memory is exhausted.
    """
    tried, left_out = _candidates(run, setting, force, emit)
    key = _key(run, tried)
    kept = _remembered(run, key)
    if kept is not None:
        left_out |= {name: reason for name, reason in kept["left_out"].items() if name in tried}
        return _told(Chosen(str(kept["chosen"]), {**kept, "left_out": left_out}, again=True), emit)
    made: dict[str, Any] = {"format": FORMAT, "key": key, "split": SPLIT, "images": 0, "chosen": PLAIN}
    made |= {"strategies": [], "cross_fitted": None, "left_out": left_out}
    if len(tried) > 1:
        found = _tried(run, tried, setting, data, emit)
        made |= {**found, "left_out": left_out | found["left_out"]}
    _remember(run, made, emit)
    return _told(Chosen(str(made["chosen"]), made, again=False), emit)


def _told(chosen: Chosen, emit: Emit) -> Chosen:
    emit(chosen.table())
    return chosen


# -- which strategies ----------------------------------------------------------------------------------------------


def _candidates(run: OpenRun, setting: Setting, force: bool, emit: Emit) -> tuple[Strategies, dict[str, str]]:
    """The strategies to try, the plain images first, and why the others are left out."""
    from cxrlt_cli.registry import available

    plugins = available("tta")
    names = [plugin.name for plugin in plugins]
    found, left_out = {PLAIN: strategy_of(run, PLAIN, force=True)}, {}
    for plugin in plugins:
        name = plugin.name if names.count(plugin.name) == 1 else plugin.qualified
        if name == PLAIN:
            continue
        try:
            strategy = strategy_of(run, name, force=True)
            try_views(strategy.views, setting)
        except CxrltError as error:  # a broken plugin hurts only those who ask for it
            left_out[name] = "is broken"
            emit(Notice(f"the test-time augmentation {name!r} is left out: {error.what}", "warning"))
            continue
        lacking = [] if force else unseen(run, strategy)
        if lacking:
            left_out[name] = f"needs augment.{' and augment.'.join(lacking)}"
        elif strategy.merge == "rank":
            left_out[name] = "ranks images against each other"
        else:
            found[name] = strategy
    return found, left_out


def _shared(strategies: Strategies) -> tuple[list[View], dict[str, list[int]]]:
    """Every different view once, and where each strategy finds its own; the identity is first in all of them."""
    views: list[View] = []
    places: dict[object, int] = {}
    own: dict[str, list[int]] = {}
    for name, strategy in strategies.items():
        own[name] = []
        for number, view in enumerate(strategy.views):
            place = places.setdefault(_same(view) if number else "identity", len(views))
            if place == len(views):
                views.append(view)
            own[name].append(place)
    return views, own


def _same(view: View) -> object:
    """Equal for views that do the same, as far as their authors let one see."""
    try:
        hash(view.apply)
    except TypeError:
        return id(view.apply)
    return view.apply


# -- remembering ---------------------------------------------------------------------------------------------------


def _key(run: OpenRun, tried: Strategies) -> str:
    """Changes with the weights, the data, the strategies, their packages and the rule."""
    from cxrlt_cli.registry import available

    with run.dir.model.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    described = {name: [one.space, one.merge, [_described(view) for view in one.views]] for name, one in tried.items()}
    versions = sorted({(plugin.distribution, plugin.version) for plugin in available("tta")})
    rule = [FORMAT, SPLIT, FOLDS, RESAMPLES, SEED]
    text = json.dumps([weights, run.card.dataset, rule, described, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(view: View) -> list[Any]:
    """A view as text, without addresses in memory, which change with every process."""
    apply = getattr(view.apply, "__qualname__", None) or _ADDRESS.sub("", repr(view.apply))
    limits = [sorted(group) if group is not None else None for group in (view.needs, view.classes, view.projections)]
    return [view.name, apply, *limits]


def _remembered(run: OpenRun, key: str) -> dict[str, Any] | None:
    try:
        kept = read_json(run.dir.tta)
    except RunError:  # not there, or damaged: it can be made again
        return None
    return kept if isinstance(kept, dict) and kept.get("key") == key else None


def _remember(run: OpenRun, made: Mapping[str, Any], emit: Emit) -> None:
    try:
        write_json(run.dir.tta, made)
    except OSError as error:
        emit(Notice(f"{run.dir.tta} cannot be kept: {error.strerror or error}"))


# -- trying them ---------------------------------------------------------------------------------------------------


def _tried(run: OpenRun, tried: Strategies, setting: Setting, data: Path | None, emit: Emit) -> dict[str, Any]:
    from cxrlt_cli.data.shards import Reader
    from cxrlt_cli.engine.merge import merge

    prepared = _own_dataset(run, data, emit)
    rows = split_rows(run, prepared, SPLIT, emit)
    labels = prepared.labels[rows][:, [prepared.classes.index(name) for name in run.card.classes]]
    ids, patients = (column(prepared.frame, text, rows) for text in ("image_id", "patient_id"))
    _check_dev(prepared, labels, patients)
    views, own = _shared(tried)
    emit(Notice(f"choosing a test-time augmentation on {SPLIT}: {len(tried)} strategies, {len(views)} views"))
    outputs = view_logits(run, Reader(prepared), rows, replace(setting, stage=SPLIT), views=views, emit=emit)
    link, projections = open_link(run), column(prepared.frame, "view", rows)
    logits = {name: merge(outputs[own[name]], one, run.card.classes, projections, link) for name, one in tried.items()}
    check_finite(run, ids, logits[PLAIN])
    lost = {name: "outputs that are not finite" for name, made in logits.items() if not np.isfinite(made).all()}
    logits = {name: made for name, made in logits.items() if name not in lost}
    costs = {name: len(tried[name].views) for name in logits}
    choice = _choice(labels, logits, costs, patients, emit)
    _keep(run, prepared, choice.name, Predictions(run.card.classes, ids, patients, logits[choice.name]), emit)
    return {"images": len(rows), "left_out": lost, **_as_data(choice)}


def _check_dev(prepared: Prepared, labels: npt.NDArray[np.int8], patients: Sequence[str]) -> None:
    """Refuse images a choice cannot be made on before they are predicted."""
    what = ""
    if not (labels == 1).any():
        what = f"no finding is labelled in the split {SPLIT!r}, so there is nothing to choose by"
    elif patient_codes(patients).max() == 0:
        what = f"the split {SPLIT!r} is of one patient, so that no choice can be scored on another one"
    if what:
        raise DataError(what, where=str(prepared.path), cure="Name a test-time augmentation with --tta.")


def _keep(run: OpenRun, prepared: Prepared, name: str, made: Predictions, emit: Emit) -> None:
    """Keep the dev predictions of the choice, to fit its decisions on; those of the run's own strategy are there."""
    if name == run.card.tta["name"] or chosen_on(run, prepared, SPLIT):
        return
    path = run.predictions(prepared, SPLIT, name)
    try:
        write_predictions(path, made)
        stamp(path, run.card, name)
    except OSError as error:
        emit(Notice(f"{path} cannot be kept: {error.strerror or error}"))


def _own_dataset(run: OpenRun, data: Path | None, emit: Emit) -> Prepared:
    """The dataset of training, where ``data`` says it is or where it was."""
    own = data is not None and load_prepared(data).content_hash == run.card.dataset
    return open_dataset(run, data if own else None, emit)


def _choice(
    labels: npt.NDArray[np.int8],
    logits: Mapping[str, npt.NDArray[np.float32]],
    views: Mapping[str, int],
    patients: Sequence[str],
    emit: Emit,
) -> Choice:
    stage = "compare"
    emit(Started(stage, measurements(len(logits), FOLDS), "bootstraps"))
    choice = choose(
        labels,
        logits,
        views,
        patients,
        plain=PLAIN,
        folds=FOLDS,
        resamples=RESAMPLES,
        seed=SEED,
        progress=lambda done: emit(Advanced(stage, done)),
    )
    emit(Finished(stage))
    return choice


# -- what is said --------------------------------------------------------------------------------------------------


def _as_data(choice: Choice) -> dict[str, Any]:
    order = sorted(choice.trials, key=lambda name: (choice.trials[name].views, name != PLAIN, name))
    gain = choice.gain
    return {
        "chosen": choice.name,
        "strategies": [_trial(name, choice.trials[name]) for name in order],
        "cross_fitted": {
            **{"gain": _finite(gain.value), "low": _finite(gain.low), "high": _finite(gain.high)},
            "by_fold": list(choice.by_fold),
        },
    }


def _trial(name: str, trial: Trial) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "views": trial.views, "macro_ap": _finite(trial.score)}
    if trial.gain is None:
        return made
    ends = {"gain": trial.gain.value, "low": trial.gain.low, "high": trial.gain.high, "p": trial.p}
    return {**made, **{key: _finite(value) for key, value in ends.items()}, "credible": trial.credible}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _row(one: Mapping[str, Any], chosen: str) -> tuple[str, ...]:
    mark = "chosen" if one["name"] == chosen else ""
    head = (one["name"], str(one["views"]), figure(one["macro_ap"]))
    if "gain" not in one:
        return (*head, "", "", "", mark)
    return (*head, figure(one["gain"], SIGNED), between(one["low"], one["high"], SIGNED), p_text(one["p"]), mark)


def _note(data: Mapping[str, Any], again: bool) -> str:
    remembered = " Remembered from an earlier call." if again else ""
    crossed = data["cross_fitted"]
    if crossed is None:
        return "no other strategy can be tried: the plain images." + remembered
    plain = "No gain is beyond chance (interval above 0, p below 5 %): the plain images. "
    why = plain if data["chosen"] == PLAIN else ""
    gain = f"{figure(crossed['gain'], SIGNED)} ({between(crossed['low'], crossed['high'], SIGNED)})"
    return (
        f"{why}An image costs as many passes as views. Chosen on some patients and scored on the others, the choice "
        f"gains {gain}.{remembered}"
    )
