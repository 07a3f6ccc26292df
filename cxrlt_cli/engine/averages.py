"""What is saved in place of the best epoch: the mean of the last epochs, or a greedy soup of the best ones.

After every epoch the weights that were evaluated (their moving average, where there is one) are kept in the run
directory as ``snapshots/EPOCH.safetensors``, as long as they may still be wanted. Both averages are made from these
files alone, so that a run that was interrupted makes the same ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from cxrlt_cli.artifacts import RunDir, replacing
from cxrlt_cli.data.augment import augment
from cxrlt_cli.data.batches import batches, to_unit
from cxrlt_cli.engine.infer import autocast
from cxrlt_cli.engine.parts import Job, Parts
from cxrlt_cli.engine.plan import epoch_steps
from cxrlt_cli.errors import RunError
from cxrlt_cli.recipe.schema import Average

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: Most batches that the running statistics of an average are estimated on.
NORM_BATCHES = 200

History = Sequence[dict[str, Any]]
Score = Callable[[Sequence[int]], float]


def ingredients(job: Job, parts: Parts, history: History) -> list[int]:
    """The epochs, counted from 1, that would be averaged if training ended here; a soup's in the order of trial.

    Only epochs under the same class weights as the last one (``swa``) or the best one (``soup``) are taken: the others
    mean something else by the same logit.
    """
    average = job.recipe.train.average
    if not history or not replaces_best(average):
        return []
    ranked = sorted(history, key=lambda row: (-_score(row), row["epoch"])) if average.soup else list(history)[::-1]
    alike = [row["epoch"] for row in ranked if _weighted(job, parts, row) == _weighted(job, parts, ranked[0])]
    chosen = alike[: average.soup or average.swa]
    return chosen if average.soup else chosen[::-1]


def replaces_best(average: Average) -> bool:
    """Whether an average over epochs is saved in place of the best epoch."""
    return average.swa is not None or average.soup is not None


def _score(row: dict[str, Any]) -> float:
    return float(row["macro_ap"])


def _weighted(job: Job, parts: Parts, row: dict[str, Any]) -> bool:
    return bool((row["step"] - 1) / parts.plan.total >= job.recipe.reweight.start)


# -- snapshots ---------------------------------------------------------------------------------------------------


def take_snapshot(run: RunDir, epoch: int, model: nn.Module) -> None:
    """Keep the weights the model holds now."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with replacing(run.snapshot(epoch)) as part:
        save_file(tensors, part)


def drop_snapshots(job: Job, parts: Parts, history: History) -> None:
    """Remove the snapshots that no end of training can want: neither from here nor from the state before.

    Those of epochs before and after re-weighting began are kept apart, because the best epoch may yet be of either.
    """
    keep: set[int] = set()
    for weighted in (False, True):
        alike = [row for row in history if _weighted(job, parts, row) == weighted]
        keep |= {*ingredients(job, parts, alike), *ingredients(job, parts, alike[:-1])}
    for path in job.run.snapshots.glob("*.safetensors"):
        if path not in {job.run.snapshot(epoch) for epoch in keep}:
            path.unlink()


def discard_snapshots(run: RunDir) -> None:
    """Remove what a finished run no longer needs."""
    shutil.rmtree(run.snapshots, ignore_errors=True)


def mean_of(run: RunDir, epochs: Sequence[int]) -> dict[str, Tensor]:
    """The mean of the snapshots of some epochs, summed in float64; tensors that are not floating come from the last.

    Raises:
        RunError: a snapshot is missing or damaged.
    """
    total: dict[str, Tensor] = {}
    for epoch in epochs:
        for name, value in _read(run, epoch).items():
            if value.is_floating_point() and name in total:
                total[name] += value
            else:
                total[name] = value.double() if value.is_floating_point() else value
    return {name: value / len(epochs) if value.is_floating_point() else value for name, value in total.items()}


def _read(run: RunDir, epoch: int) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    path = run.snapshot(epoch)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"the weights of epoch {epoch}, which are to be averaged, cannot be read: {error}",
            where=str(path),
            cure="Start anew with `--fresh`, or evaluate the best epoch, which is saved in the run directory.",
        ) from error
    return tensors


# -- averages ----------------------------------------------------------------------------------------------------


def hold_average(job: Job, parts: Parts, epochs: Sequence[int]) -> None:
    """Let the model hold the mean of some epochs, with running statistics of its own."""
    parts.model.load_state_dict(mean_of(job.run, epochs))
    if len(epochs) > 1:
        refresh_norms(job, parts)


def greedy_soup(candidates: Sequence[int], best: float, score: Score) -> list[int]:
    """The candidates whose average is no worse than without them, tried in order (arXiv 2203.05482, recipe 1).

    Args:
        candidates: epochs, the best first.
        best: score of the first one.
        score: of the average of some epochs.
    """
    chosen = list(candidates[:1])
    for epoch in candidates[1:]:
        reached = score([*chosen, epoch])
        if reached >= best:
            chosen, best = [*chosen, epoch], reached
    return chosen


@torch.no_grad()
def refresh_norms(job: Job, parts: Parts) -> None:
    """Estimate running statistics anew: those of averaged weights are not the average of the statistics.

    The plain mean over up to ``NORM_BATCHES`` augmented training batches (arXiv 1803.05407, section 3.2); everything
    but the batch norms is in evaluation mode. Every process does the same work, so that all end with the same numbers.
    """
    norms = [module for module in parts.model.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    parts.model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    _show_training_images(job, parts)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    parts.model.eval()


def _show_training_images(job: Job, parts: Parts) -> None:
    recipe = job.recipe
    steps = epoch_steps(parts.sampler, parts.plan, parts.plan.epochs - 1, 0, 1)[:NORM_BATCHES]
    chunks = [(step, chunk) for step in steps for chunk in step.chunks]
    wanted = (parts.rows.train[chunk.items] for _, chunk in chunks)
    with closing(batches(parts.reader, wanted, pin=job.device.type == "cuda")) as images:
        for (step, chunk), batch in zip(chunks, images, strict=True):
            seen = to_unit(batch, job.device, parts.size)
            seen = augment(
                seen,
                recipe.augment,
                seed=recipe.train.seed,
                epoch=step.epoch,
                step=step.number,
                rows=chunk.places,
            )
            with autocast(recipe.train.precision, job.device):
                parts.model(seen)
