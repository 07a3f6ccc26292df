"""Rules of ``cxrlt.losses``; the contract is ``cxrlt_cli.contracts.Loss``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import Loss
from cxrlt_cli.errors import PluginError
from cxrlt_cli.posterior import derive
from cxrlt_cli.testing.rules import CLASSES, STATS, Broken, Rule, Skip, Subject

ROWS = 12
#: Logits at which slopes are looked at: dense near 0, where scaled losses change, and out to where sigmoids saturate.
LOGITS = torch.cat([-torch.logspace(1.5, -2, 40), torch.zeros(1), torch.logspace(-2, 1.5, 40)]).double()


def _built(subject: Subject) -> Any:
    """The loss; one that learns from what it sees is judged in evaluation mode, where it must not."""
    loss = subject.build(STATS)
    return loss.eval() if getattr(loss, "stateful", False) else loss


def _pointwise(loss: Loss) -> bool:
    return bool(getattr(loss, "pointwise", True))


def _only_pointwise(loss: Loss) -> None:
    if not _pointwise(loss):
        raise Skip("the loss says pointwise = False")


def _batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, hard targets and weights (12, C); every class has both labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, CLASSES, generator=draw, dtype=torch.float64)
    targets = (torch.rand(ROWS, CLASSES, generator=draw) < 0.4).double()
    targets[0], targets[1] = 1, 0
    weight = 0.2 + 2 * torch.rand(ROWS, CLASSES, generator=draw, dtype=torch.float64)
    return logits.to(dtype), targets.to(dtype), weight.to(dtype)


def _gradient(loss: Loss, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, targets, weight), logits)
    return gradient


def is_a_scalar_module(subject: Subject) -> None:
    """A loss is an nn.Module that takes logits, targets and weight (B, C) and returns one number with a gradient."""
    loss = _built(subject)
    if not isinstance(loss, nn.Module):
        raise Broken(f"the factory returns a {type(loss).__name__}, not a torch.nn.Module")
    value = loss(*_batch())
    if not isinstance(value, Tensor) or value.shape != ():
        raise Broken(f"it returns {getattr(value, 'shape', type(value).__name__)}; reduce to a scalar")
    if not _gradient(loss, *_batch()).any():
        raise Broken("its gradient is zero everywhere on an ordinary batch: nothing would be learned")


def slopes_lead_towards_the_label(subject: Subject) -> None:
    """Raising the logit never raises the loss of a positive, and never lowers the loss of a negative."""
    loss = _built(subject)
    for logits, targets in _ladders() if _pointwise(loss) else _mixed():
        slope = _gradient(loss, logits, targets, torch.ones_like(logits)) * (2 * targets - 1)
        bad = torch.nonzero(slope > 1e-9 * slope.abs().max())
        if len(bad):
            row, klass = bad[len(bad) // 2].tolist()
            label, logit = float(targets[row, klass]), float(logits[row, klass])
            raise Broken(_wrong_slope(label, logit, STATS.names[klass], len(bad), logits.numel()))


def _ladders() -> Iterator[tuple[Tensor, Tensor]]:
    """Every logit of ``LOGITS``, all of them positives, then all negatives."""
    rows = LOGITS[:, None].repeat(1, CLASSES)
    return ((rows, torch.full_like(rows, label)) for label in (1.0, 0.0))


def _mixed() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of both labels, for losses whose entries depend on each other, at logits of several sizes."""
    for seed, size in enumerate((0.1, 1.0, 1.0, 4.0, 16.0)):
        logits, targets, _ = _batch(seed=seed)
        yield size * logits, targets


def _wrong_slope(label: float, logit: float, klass: str, bad: int, tried: int) -> str:
    side, other = ("positive", "falls short of") if label else ("negative", "is already far from")
    p = 1 / (1 + np.exp(-logit))
    falls = "rises" if label else "falls"
    hint = (
        "The optimum would be to answer the opposite of the label."
        if not label
        else "The optimum would be never to find anything."
    )
    return (
        f"for a {side} of class {klass} at logit {logit:.3g} (p = {p:.2g}) the loss {falls} as the logit rises; so at "
        f"{bad} of {tried} places. {hint} In a focal or asymmetric loss, the factor on a {side} is a power of how much "
        f"its probability {other} the label: "
        + ("(1 - p)^gamma." if label else "p^gamma, with p lowered by the clip, not raised.")
    )


def takes_every_floating_type(subject: Subject) -> None:
    """Logits of half precision are computed with in float32 at least, and float64 stays float64."""
    loss = _built(subject)
    exact = float(loss(*_batch()))
    for dtype, tolerance in ((torch.float16, 3e-2), (torch.bfloat16, 1e-1), (torch.float32, 1e-4)):
        value = loss(*_batch(dtype))
        if value.dtype not in {torch.float32, torch.float64}:
            raise Broken(f"for {dtype} logits it answers in {value.dtype}; convert the logits to float32 first")
        if not abs(float(value) - exact) <= tolerance * max(1.0, abs(exact)):
            raise Broken(f"for {dtype} logits it is {float(value):.6g}, for float64 {exact:.6g}")
    if loss(*_batch()).dtype != torch.float64:
        raise Broken("float64 logits are rounded to float32: use torch.promote_types(logits.dtype, torch.float32)")


def is_finite_at_extreme_logits(subject: Subject) -> None:
    """Value and gradient are finite at logits of 30, 1,000 and 10,000 on either side, in float32."""
    loss, (_, targets, weight) = _built(subject), _batch(torch.float32)
    signs = torch.tensor([1.0, -1.0]).repeat(ROWS * CLASSES // 2).reshape(ROWS, CLASSES)
    for size in (30.0, 1e3, 1e4):
        for side in (signs, -signs):
            value = float(loss(size * side, targets, weight))
            gradient = _gradient(loss, size * side, targets, weight)
            if not np.isfinite(value) or not gradient.isfinite().all():
                what = f"the loss is {value}" if not np.isfinite(value) else "the gradient is not finite"
                raise Broken(
                    f"at logits of +-{size:g} {what}; write logarithms of probabilities with "
                    "torch.nn.functional.logsigmoid or softplus, and powers so that 0 ** (g - 1) cannot occur"
                )


def zero_weight_means_zero_gradient(subject: Subject) -> None:
    """An entry of weight 0 (an unknown label) changes neither the loss nor any gradient, whatever its target says."""
    loss, (logits, targets, weight) = _built(subject), _batch()
    weight[::2, 1] = 0
    first = targets.clone()
    first[::2, 1] = -1
    other = first.clone()
    other[::2, 1] = float("nan")
    gradient = _gradient(loss, logits, first, weight)
    if gradient[::2, 1].any():
        raise Broken("the gradient at entries of weight 0 is not 0")
    if not torch.equal(loss(logits, first, weight), loss(logits, other, weight)):
        raise Broken("the target under a weight of 0 matters: -1 and nan there give different losses; blank it first")
    moved = logits.clone()
    moved[::2, 1] += 3
    if not torch.allclose(loss(moved, first, weight), loss(logits, first, weight), rtol=1e-12, atol=0):
        raise Broken("the logit under a weight of 0 matters")


def without_known_labels_it_is_zero(subject: Subject) -> None:
    """A batch in which nothing is known costs 0 and has a zero gradient, not nan."""
    loss, (logits, targets, weight) = _built(subject), _batch()
    value, gradient = loss(logits, targets, 0 * weight), _gradient(loss, logits, targets, 0 * weight)
    if value.item() != 0 or gradient.any() or gradient.isnan().any():
        raise Broken(f"with no known label the loss is {value.item()}; divide by max(1, count of known entries)")


def is_the_sum_over_the_count_of_known_entries(subject: Subject) -> None:
    """The result is the weighted sum over the count of known entries, so learning rates carry over between losses."""
    loss, (logits, targets, weight) = _built(subject), _batch()
    whole = loss(logits, targets, weight)
    if not torch.allclose(loss(logits, targets, 2 * weight), 2 * whole):
        raise Broken("doubling every weight does not double the loss: do not divide by the sum of the weights")
    _only_pointwise(loss)
    rows = [loss(logits[i : i + 1], targets[i : i + 1], weight[i : i + 1]) for i in range(ROWS)]
    if not torch.allclose(whole, torch.stack(rows).mean()):
        raise Broken(
            f"a batch costs {whole.item():.6g}, the mean over its rows alone {torch.stack(rows).mean().item():.6g}: "
            "either the reduction is not the sum over the count of known entries, or entries depend on each other "
            "and the loss should say pointwise = False"
        )


def takes_soft_targets(subject: Subject) -> None:
    """Targets between 0 and 1 (label smoothing, mixup) give a finite loss and gradient."""
    loss, (logits, _, weight) = _built(subject), _batch()
    soft = torch.linspace(0, 1, ROWS * CLASSES, dtype=torch.float64).reshape(ROWS, CLASSES)
    if not loss(logits, soft, weight).isfinite() or not _gradient(loss, logits, soft, weight).isfinite().all():
        raise Broken("the loss of targets between 0 and 1 is not finite")


def a_class_without_positives_is_no_harm(subject: Subject) -> None:
    """A batch without a single positive gives a finite loss and gradient."""
    loss, (logits, targets, weight) = _built(subject), _batch()
    for constant in (0 * targets, torch.ones_like(targets)):
        value, gradient = loss(logits, constant, weight), _gradient(loss, logits, constant, weight)
        if not value.isfinite() or not gradient.isfinite().all():
            raise Broken(f"a batch whose labels are all {int(constant[0, 0])} gives {value.item()}")


def keeps_no_state_between_calls(subject: Subject) -> None:
    """The same batch gives the same loss again, whatever was seen in between; a memory says `stateful = True`."""
    loss = _built(subject)
    before, kept = loss(*_batch()), {name: value.clone() for name, value in loss.state_dict().items()}
    loss(*_batch(seed=1))
    if not torch.equal(loss(*_batch()), before):
        raise Broken("the second call answers differently: it draws at random, or keeps something from earlier calls")
    if any(not torch.equal(kept[name], value) for name, value in loss.state_dict().items()):
        raise Broken("a buffer changed; a loss that has to remember says stateful = True and learns in training mode")


def leaves_its_arguments_alone(subject: Subject) -> None:
    """Logits, targets and weight are not written to."""
    loss, given = _built(subject), _batch()
    kept = [tensor.clone() for tensor in given]
    loss(*given)
    for name, before, after in zip(("logits", "targets", "weight"), kept, given, strict=True):
        if not torch.equal(before, after):
            raise Broken(f"it writes to {name}; an operation that ends in _ changes its argument")


def leaves_the_modes_alone(subject: Subject) -> None:
    """Gradient mode and the global random generator are as they were; under no_grad the loss can still be computed."""
    loss, state = _built(subject), torch.get_rng_state()
    loss(*_batch())
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise Broken("it switches gradients off; use `with torch.no_grad():`, which switches them on again")
    with torch.no_grad():
        loss(*_batch())
        if torch.is_grad_enabled():
            raise Broken("under torch.no_grad() it switches gradients on")
    if not torch.equal(state, torch.get_rng_state()):
        raise Broken("it draws from torch's global generator, so an interrupted run could not be repeated")


def can_be_copied_and_stored(subject: Subject) -> None:
    """A deep copy answers the same; the state_dict holds tensors only, and loads into a fresh loss."""
    loss, other = _built(subject), _built(subject)
    state = loss.state_dict()
    if any(not isinstance(value, Tensor) for value in state.values()):
        raise Broken("its state_dict holds things that are not tensors; weights are stored without pickle")
    other.load_state_dict(state)
    answers = [each.eval()(*_batch()) for each in (loss, copy.deepcopy(loss), other)]
    if not all(torch.equal(answer, answers[0]) for answer in answers):
        raise Broken("its copy answers differently")


def its_posterior_rises_with_the_logit(subject: Subject) -> None:
    """The gradients of a pointwise loss make a posterior that rises with the logit (DESIGN 5.2)."""
    loss = _built(subject)
    _only_pointwise(loss)
    try:
        link = derive(loss, np.ones(CLASSES), np.ones(CLASSES))
    except PluginError as error:
        raise Broken(error.what) from error
    if link is None:
        raise Broken("the gradient of an entry moves with other entries of the batch: say pointwise = False")


def its_optimum_rises_with_the_prevalence(subject: Subject) -> None:
    """The constant logit that costs least rises with the share of positives in the batch."""
    loss = _built(subject)
    _only_pointwise(loss)
    for klass, name in enumerate(STATS.names):
        best = [_best_logit(loss, share, klass) for share in (0.02, 0.1, 0.3, 0.6, 0.9)]
        if any(later < earlier for earlier, later in pairwise(best)) or best[0] == best[-1]:
            shown = ", ".join(f"{value:.3g}" for value in best)
            raise Broken(f"for class {name} the best constant logits at 2, 10, 30, 60 and 90 % positives are {shown}")


def _best_logit(loss: Loss, share: float, klass: int) -> float:
    """The logit among ``LOGITS`` that costs least where this share of a class is positive."""
    targets = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None].repeat(1, CLASSES)
    weight = torch.zeros_like(targets)
    weight[0, klass], weight[1, klass] = share, 1 - share
    costs = [float(loss(torch.full_like(targets, float(z)), targets, weight)) for z in LOGITS]
    return float(LOGITS[int(np.argmin(costs))])


RULES: Sequence[Rule] = (
    is_a_scalar_module,
    slopes_lead_towards_the_label,
    takes_every_floating_type,
    is_finite_at_extreme_logits,
    zero_weight_means_zero_gradient,
    without_known_labels_it_is_zero,
    is_the_sum_over_the_count_of_known_entries,
    takes_soft_targets,
    a_class_without_positives_is_no_harm,
    keeps_no_state_between_calls,
    leaves_its_arguments_alone,
    leaves_the_modes_alone,
    can_be_copied_and_stored,
    its_posterior_rises_with_the_logit,
    its_optimum_rises_with_the_prevalence,
)
