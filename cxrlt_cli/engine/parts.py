"""Everything a run is made of, built from its recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.artifacts import ModelCard, RunDir
from cxrlt_cli.contracts import ClassStats, Loss, PluginFault, Sampler
from cxrlt_cli.data.augment import seen
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.data.shards import Reader
from cxrlt_cli.engine.distributed import World, synchronise_norms, wrap
from cxrlt_cli.engine.plan import Plan, make_plan
from cxrlt_cli.engine.sampling import build_sampler, expected_draws, preference
from cxrlt_cli.engine.targets import smoothing_level
from cxrlt_cli.errors import DataError, PluginError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.model import Classifier, build_classifier, set_bias
from cxrlt_cli.optim import build_optimizer, ema_start, parameter_groups
from cxrlt_cli.posterior import Link, derive, unsmoothed
from cxrlt_cli.recipe.schema import PluginRef, Recipe
from cxrlt_cli.registry import build
from cxrlt_cli.reweight import class_weights, weighed_down


@dataclass(frozen=True)
class Job:
    """A run to carry out.

    Attributes:
        recipe: what to do.
        prepared: the data.
        run: where results go.
        device: of this process.
        world: the processes.
    """

    recipe: Recipe
    prepared: Prepared
    run: RunDir
    device: torch.device
    world: World


@dataclass(frozen=True)
class Rows:
    """Positions in the manifest, and the labels there.

    Attributes:
        train: (N,) training images.
        dev: (M,) development images.
        labels: (N, C) int8 labels of the training images.
        dev_labels: (M, C) int8 labels of the development images.
        stats: counts of ``labels``.
    """

    train: npt.NDArray[np.int64]
    dev: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]
    dev_labels: npt.NDArray[np.int8]
    stats: ClassStats


@dataclass(frozen=True)
class Parts:
    """What the loop works with; the tensors inside change, the parts do not.

    Attributes:
        rows: which images.
        reader: reads them.
        model: the bare network, whose names are those of the saved weights.
        network: the same network as it is trained, perhaps behind a distributed wrapper.
        loss: the training loss.
        optimizer: of the network's parameters.
        scaler: of fp16 gradients; does nothing in other precisions.
        average: averaged weights, or None.
        sampler: order of an epoch.
        plan: shape of the run.
        size: side of the images the network sees.
    """

    rows: Rows
    reader: Reader
    model: Classifier
    network: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor] | None
    sampler: Sampler
    plan: Plan
    size: int


def assemble(job: Job, emit: Emit) -> Parts:
    """Build everything; the same on every process.

    Raises:
        CxrltError: whatever is wrong with the data, the plugins or the recipe.
    """
    recipe, device = job.recipe, job.device
    seed_everything(recipe.train.seed, deterministic=recipe.train.deterministic, device=device)
    rows = select_rows(job.prepared, recipe)
    size = image_size(job.prepared, recipe)
    sampler = sampler_of(job.prepared, rows, recipe)
    plan = make_plan(sampler, recipe.train, job.world.size)
    loss = cast("nn.Module", build("losses", recipe.loss, rows.stats)).to(device)
    model = build_classifier(recipe.model, rows.stats, size)
    link = link_at(cast("Loss", loss), rows, recipe, sampler=sampler, plan=plan, step=0)
    _start_at_priors(model, recipe, rows.stats, link, emit)
    model = _placed(model, job)
    _try_out(model, recipe, rows.stats, size, device)
    _warn_of_norms(model, job, emit)
    _warn_of_weights(rows.stats, recipe, emit)
    optimizer = build_optimizer(parameter_groups(model.backbone, model.head, recipe.optim), recipe.optim, device)
    return Parts(
        rows=rows,
        reader=Reader(job.prepared),
        model=model,
        network=wrap(model, job.world, device),
        loss=cast("Loss", loss),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16"),
        average=ema_start(model) if recipe.train.average.ema else None,
        sampler=sampler,
        plan=plan,
        size=size,
    )


def _placed(model: Classifier, job: Job) -> Classifier:
    train = job.recipe.train
    model = cast("Classifier", synchronise_norms(model, job.world, job.device)).to(job.device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if train.compile:
        model.compile()
    return model


@torch.no_grad()
def _try_out(model: Classifier, recipe: Recipe, stats: ClassStats, size: int, device: torch.device) -> None:
    """Pass one black image, so that a network that cannot work on this size says so before anything is read."""
    where = f"{recipe.model.backbone.name} with {recipe.model.head.name}"
    try:
        shape = tuple(model.eval()(torch.zeros(1, 1, size, size, device=device)).shape)
    except PluginFault as fault:
        raise PluginError(fault.what, where=fault.where or where, cure=fault.cure) from fault
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise PluginError(
            f"the network cannot process images of {size} x {size} px: {str(error).splitlines()[0]}",
            where=where,
            cure="Choose another data.size or another backbone.",
        ) from error
    if shape != (1, len(stats.names)):
        raise PluginError(
            f"the network answers one image with shape {shape}, not (1, {len(stats.names)})",
            where=where,
            cure="The head plugin breaks its contract.",
        )


def _warn_of_norms(model: nn.Module, job: Job, emit: Emit) -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = any(isinstance(module, kinds) for module in model.modules())
    if norms and job.world.size > 1 and job.device.type == "cpu":
        text = (
            "batch norms use the statistics of each process's own images, so weights depend on the number of processes"
        )
        emit(Notice(text, "warning"))


def _warn_of_weights(stats: ClassStats, recipe: Recipe, emit: Emit) -> None:
    down, classes = weighed_down(stats, recipe.reweight), len(stats.names)
    if recipe.reweight.relative_to == "mean" and down > classes / 2:
        text = (
            f"reweight.relative_to mean, the published form, weighs the positives of {down} of {classes} classes down"
        )
        emit(Notice(f"{text}; relative_to head weighs none down", "warning"))


def seed_everything(seed: int, *, deterministic: bool, device: torch.device) -> None:
    """Seed the weights' initialisation and choose the kernels."""
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(mode=True)


def select_rows(prepared: Prepared, recipe: Recipe) -> Rows:
    """The images a recipe trains and is evaluated on.

    Raises:
        DataError: a part is empty, or dev has no positive of any class.
    """
    fold, views = recipe.data.fold, recipe.data.views
    train, dev = (prepared.rows(split, fold=fold, views=views) for split in ("train", "dev"))
    for name, rows in (("training", train), ("dev", dev)):
        if len(rows) == 0:
            raise DataError(
                f"there is no {name} image with {_described(fold=fold, views=views)}",
                where=str(prepared.path),
                cure="Prepare the data with `--split dev=0.1` or `--folds 5`, or change data.fold and data.views.",
            )
    labels = prepared.labels
    if not (labels[dev] == 1).any():
        raise DataError(
            "no dev image is labelled with any finding, so there is nothing to choose the best epoch by",
            where=str(prepared.path),
            cure="Prepare the data with a larger dev share.",
        )
    return Rows(train, dev, labels[train], labels[dev], prepared.stats(train))


def sampler_of(prepared: Prepared, rows: Rows, recipe: Recipe) -> Sampler:
    """The order of the recipe's epochs over ``rows.train``."""
    patients = prepared.frame["patient_id"].iloc[rows.train].tolist()
    train = recipe.train
    return build_sampler(recipe.sampler, rows.labels, rows.stats, patients, seed=train.seed, epochs=train.epochs)


def _described(**options: object) -> str:
    chosen = ", ".join(f"data.{key} {value}" for key, value in options.items() if value is not None)
    return chosen or "the default data.fold and data.views"


def image_size(prepared: Prepared, recipe: Recipe) -> int:
    """Side of the images the network sees.

    Raises:
        DataError: more pixels are asked for than were prepared.
    """
    size = recipe.data.size or prepared.size
    if size > prepared.size:
        raise DataError(
            f"data.size {size} is more than the {prepared.size} px of the prepared dataset",
            where=str(prepared.path),
            cure=f"Prepare it again with `--size {size}`, or ask for at most {prepared.size}.",
        )
    return size


def _start_at_priors(model: Classifier, recipe: Recipe, stats: ClassStats, link: Link | None, emit: Emit) -> None:
    if recipe.model.init_bias == "zero":
        return
    if link is None:
        emit(Notice("the loss has no posterior link: the head starts at zero instead of the class priors", "detail"))
        return
    prior = np.array(stats.prevalence)
    start = link.inverse(np.log(prior) - np.log1p(-prior))
    set_bias(model.head, torch.from_numpy(start).float())


def link_at(loss: Loss, rows: Rows, recipe: Recipe, *, sampler: Sampler, plan: Plan, step: int) -> Link | None:
    """The posterior link of the loss at a step, with what is not the patients' doing taken back.

    That is: the class weights in force, the sampler's preference for positives, and label smoothing.
    """
    positives, negatives = class_weights(rows.stats, recipe.reweight, step / plan.total)
    preferred = preference(expected_draws(sampler, rows.labels, plan, step // plan.steps), rows.labels)
    link = derive(loss, positives * preferred, negatives)
    if link is None:
        return None
    return unsmoothed(link, recipe.train.label_smoothing, smoothing_level(rows.stats, recipe.train))


def model_card(job: Job, parts: Parts, link: Link | None, epoch: int, score: float) -> ModelCard:
    """The card to store with the weights of an epoch."""
    recipe, stats = job.recipe, parts.rows.stats
    return ModelCard(
        classes=stats.names,
        positives=stats.positives,
        negatives=stats.negatives,
        image_size=parts.size,
        in_chans=recipe.model.in_chans,
        fit=job.prepared.fit,
        backbone={key: value for key, value in _ref(recipe.model.backbone).items() if key != "pretrained"},
        head=_ref(recipe.model.head),
        loss=_ref(recipe.loss),
        augment=tuple(sorted(seen(recipe.augment))),
        views=tuple(recipe.data.views) if recipe.data.views else None,
        dataset=job.prepared.content_hash,
        tta=_ref(recipe.predict.tta),
        linked=link is not None,
        epoch=epoch,
        score=None if np.isnan(score) else score,
    )


def _ref(ref: PluginRef) -> dict[str, Any]:
    return {"name": ref.name, **ref.options}
