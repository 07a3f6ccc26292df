"""``cxrlt retrain-head``: another head for a trained network, made on features that are computed once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.commands.decide import after_training
from cxrlt_cli.commands.network import setting_of
from cxrlt_cli.commands.opening import OpenRun, column, open_dataset, open_link, open_network, split_rows
from cxrlt_cli.commands.retrained import Parent, begin, note_status, summary, write_run
from cxrlt_cli.commands.run_directory import claimed, move_aside
from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.errors import DataError, Interrupted, RunError, TrainingError, UsageError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.recipe.load import load_head_recipe
from cxrlt_cli.recipe.schema import PluginRef

if TYPE_CHECKING:
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.features import Features, Frozen, Wanted
    from cxrlt_cli.engine.head_job import Cohort, HeadJob, Joint, NewHead
    from cxrlt_cli.engine.signals import StopRequest
    from cxrlt_cli.model import Classifier
    from cxrlt_cli.recipe.retrain import Retrain


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, checked as far as can be without the network.

    Attributes:
        recipe: the head recipe.
        parent: the run whose head is replaced.
        prepared: the dataset.
        train: (N,) manifest positions.
        dev: (M,) manifest positions.
        labels: of the whole dataset, in the order of the run's classes.
        device: as the user named it.
    """

    recipe: Retrain
    parent: OpenRun
    prepared: Prepared
    train: npt.NDArray[np.int64]
    dev: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]
    device: str

    @property
    def stats(self) -> ClassStats:
        """Label counts of the training images."""
        known = self.labels[self.train]
        counts = [tuple((known == value).sum(0).tolist()) for value in (1, 0)]
        return ClassStats(self.parent.card.classes, counts[0], counts[1])


def run(
    run: Path,
    recipe: str = "crt",
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    data: Path | None = None,
    device: str = "auto",
    fresh: bool = False,
    dry_run: bool = False,
    emit: Emit = silent,
) -> Result:
    """Make another head for a run, and a run directory of the result.

    Features are kept in ``features`` of the run and used again by later calls. An interrupted computation of features
    continues; the head itself, which takes seconds, starts again.

    Args:
        run: directory of the run.
        recipe: path or shipped name of a head recipe.
        overrides: ``key=value`` settings that take precedence over it.
        out: directory of the result; default: beside the run, its name with that of the recipe.
        data: the dataset, if it has moved, or another one.
        device: "auto", "cpu", "cuda" or "cuda:K".
        fresh: start anew; what was there is moved aside.
        dry_run: say what would happen, and stop.
        emit: told about progress.

    Returns:
        Scores before and after with their paired difference, and where everything lies.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    chosen = load_head_recipe(recipe, overrides)
    request = _checked(chosen, open_network(run), data, device, emit)
    target = RunDir(out or request.parent.dir.path.with_name(f"{request.parent.dir.name}-{chosen.name}"))
    _check_target(request.parent.dir, target)
    if dry_run:
        return _plan(request, target)
    if fresh:
        move_aside(target, emit)
    with claimed(target):
        parent = Parent.of(request.parent)
        if begin(target, chosen, request.parent, parent, request.prepared):
            emit(Notice(f"{target.path} is already finished; nothing to do (start anew with --fresh)"))
        else:
            _carry_out(request, target, data, emit)
    return summary(target)


def _checked(recipe: Retrain, parent: OpenRun, data: Path | None, device: str, emit: Emit) -> Request:
    if parent.dir.in_use():
        raise RunError("is being trained", where=str(parent.dir.path), cure="Wait until it is finished.")
    prepared = open_dataset(parent, data, emit)
    if prepared.size < parent.card.image_size:
        raise DataError(
            f"has images of {prepared.size} px, and the network was trained on {parent.card.image_size} px",
            where=str(prepared.path),
            cure=f"Prepare the data with `--size {parent.card.image_size}`.",
        )
    if recipe.features.views and not any(value for _, value in parent.recipe.augment):
        raise UsageError(
            f"features.views is {recipe.features.views}, but the run trained without augmentation, so that all views "
            "would be the same",
            where=str(parent.dir.path),
            cure="Leave features.views at 0.",
        )
    order = [prepared.classes.index(name) for name in parent.card.classes]
    train, dev = (split_rows(parent, prepared, split, emit) for split in ("train", "dev"))
    labels = prepared.labels[:, order]
    if not (labels[dev] == 1).any():
        raise DataError(
            "no dev image is labelled with any finding, so a head cannot be judged",
            where=str(prepared.path),
            cure="Prepare the data with a larger dev share.",
        )
    return Request(recipe, parent, prepared, train, dev, labels, device)


def _check_target(parent: RunDir, target: RunDir) -> None:
    if target.path.resolve() == parent.path.resolve():
        raise UsageError(
            "is the run whose head is to be replaced", where=str(target.path), cure="Choose another --out."
        )


def _carry_out(request: Request, target: RunDir, data: Path | None, emit: Emit) -> None:
    from cxrlt_cli.engine.signals import stop_requests

    began = time.monotonic()
    note_status(target, "running")
    try:
        with stop_requests() as stop, _explained(request):
            job = _job(request, stop, emit)
            made = _make(job)
            note_status(target, "running", device=str(job.device))
            write_run(target, request, job, made, emit)
        after_training(target.path, emit)
    except Interrupted:
        note_status(target, "interrupted", seconds=time.monotonic() - began)
        raise
    except BaseException as error:
        note_status(target, "failed", seconds=time.monotonic() - began, reason=str(error).splitlines()[:1])
        raise
    note_status(target, "finished", seconds=time.monotonic() - began)


@contextmanager
def _explained(request: Request) -> Iterator[None]:
    """Turn exhausted memory into an error with a cure."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(
            "out of memory",
            where=str(request.parent.dir.path),
            cure="Set features.batch_size or train.batch_size lower, or use `--device cpu`.",
        ) from error


# -- features ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which features are needed.

    Attributes:
        train: of the training images, view by view.
        dev: of the dev images, as the new head takes them.
        before: of the dev images, as the joint head takes them.
    """

    train: tuple[Wanted, ...]
    dev: Wanted
    before: Wanted

    def sets(self) -> tuple[Wanted, ...]:
        """Each set once."""
        return (*self.train, self.dev, *(() if self.before == self.dev else (self.before,)))


def _frozen(request: Request) -> Frozen:
    import torch

    from cxrlt_cli.data.shards import Reader
    from cxrlt_cli.engine.features import Frozen, backbone_hash
    from cxrlt_cli.model import load_model

    parent, recipe = request.parent, request.recipe
    setting = setting_of(parent, request.device, recipe.features.batch_size)
    model = load_model(parent.dir.model, setting.device)[0]
    weights = backbone_hash(model)
    if parent.recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    images, folder = Reader(request.prepared), parent.dir.path / "features"
    return Frozen(model, weights, images, request.prepared.content_hash, setting, folder)


def _needed(request: Request, model: Classifier) -> _Plan:
    from cxrlt_cli.engine.features import Wanted

    recipe, maps = request.recipe, _wants_maps(request, model)
    dtype, count = recipe.features.dtype, recipe.features.views
    plain = Wanted("train", request.train, dtype, maps)
    drawn = tuple(
        Wanted("train", request.train, dtype, maps, view, request.parent.recipe.augment, recipe.train.seed)
        for view in range(count)
    )
    dev, before = (Wanted("dev", request.dev, "float32", shape) for shape in (maps, _spatial(model.head)))
    return _Plan(drawn or (plain,), dev, dev if maps == _spatial(model.head) else before)


def _wants_maps(request: Request, model: Classifier) -> bool:
    """Whether the new head takes feature maps."""
    from cxrlt_cli.registry import build

    if request.recipe.method in ("ncm", "logistic"):
        return False
    if request.recipe.head is None:
        return _spatial(model.head)
    return _spatial(build("heads", request.recipe.head, _width(model), request.stats))


def _spatial(head: Any) -> bool:
    return bool(getattr(head, "spatial", False))


def _width(model: Classifier) -> int:
    return int(model.backbone.width)  # type: ignore[arg-type]  # of the contract Backbone; torch types attributes as modules


# -- the head ------------------------------------------------------------------------------------------------------


def _job(request: Request, stop: StopRequest, emit: Emit) -> HeadJob:
    from cxrlt_cli.engine.features import features_of
    from cxrlt_cli.engine.head_job import HeadJob

    frozen = _frozen(request)
    needed = _needed(request, frozen.model)
    ready: dict[int, Features] = {id(wanted): features_of(frozen, wanted, stop, emit) for wanted in needed.sets()}
    cohort = _cohort(request, tuple(ready[id(view)] for view in needed.train), ready[id(needed.dev)])
    joint = _joint(request, frozen, ready[id(needed.before)])
    width, device = _width(frozen.model), frozen.setting.device
    return HeadJob(request.recipe, cohort, joint, width, device, stop, emit)


def _cohort(request: Request, views: tuple[Features, ...], dev: Features) -> Cohort:
    from cxrlt_cli.engine.head_job import Cohort

    frame = request.prepared.frame
    return Cohort(
        stats=request.stats,
        labels=request.labels[request.train],
        patients=column(frame, "patient_id", request.train),
        views=views,
        dev_labels=request.labels[request.dev],
        dev_patients=column(frame, "patient_id", request.dev),
        dev=dev,
    )


def _joint(request: Request, frozen: Frozen, dev: Features) -> Joint:
    from cxrlt_cli.engine.head_job import Joint, head_logits

    card, head = request.parent.card, frozen.model.head
    return Joint(
        module=head,
        ref=PluginRef.model_validate(card.head),
        loss=PluginRef.model_validate(card.loss),
        link=open_link(request.parent),
        logits=head_logits(head, dev, frozen.setting.device),
    )


def _make(job: HeadJob) -> NewHead:
    from cxrlt_cli.engine.closed_heads import logistic, nearest_mean, tau_norm
    from cxrlt_cli.engine.head_fit import rescale, retrain
    from cxrlt_cli.engine.keep_best import keep_best

    methods = {
        "crt": retrain,
        "lws": rescale,
        "tau-norm": tau_norm,
        "ncm": nearest_mean,
        "logistic": logistic,
        "keep-best": keep_best,
    }
    return methods[job.recipe.method](job)


# -- a dry run -----------------------------------------------------------------------------------------------------


def _plan(request: Request, target: RunDir) -> Result:
    """What would be done."""
    from cxrlt_cli.engine.features import bytes_of, is_cached

    frozen = _frozen(request)
    sets = _needed(request, frozen.model).sets()
    missing = [wanted for wanted in sets if not is_cached(frozen, wanted)]
    data = {
        "run": str(target.path),
        "parent": str(request.parent.dir.path),
        "method": request.recipe.method,
        "device": str(frozen.setting.device),
        "training_images": len(request.train),
        "dev_images": len(request.dev),
        "classes": len(request.parent.card.classes),
        "feature_sets": len(sets),
        "feature_sets_to_compute": len(missing),
        "bytes_to_compute": sum(bytes_of(frozen, wanted) for wanted in missing),
    }
    rows = tuple(
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)) for key, value in data.items()
    )
    return Result(data, (Table(("dry run", ""), rows), "Nothing was written."))
