"""The optimiser: parameter groups, a schedule that is a pure function of the step, and averaged weights.

Nothing here keeps state of its own: the learning rate follows from the step, and an average is a plain dictionary of
tensors that can be saved as it is.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cxrlt_cli.errors import PluginError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cxrlt_cli.recipe.schema import Ema, Optim

#: Device types with a fused AdamW kernel since torch 2.6. On a CPU it took a seventh of the foreach time.
FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})


def lr_factor(step: int, total: int, warmup: float, final: float) -> float:
    """The learning rate of a step as a share of its base rate: linear warm-up, then half a cosine.

    The first ``n = round(warmup * total)`` steps (at most ``total - 1``) rise as ``(step + 1) / (n + 1)``, so that no
    step is spent at rate 0; step ``n`` has the factor 1 exactly, the last step ``final`` exactly. A run that is all
    warm-up, or of one step, ends at 1.

    Args:
        step: the optimiser step, 0 <= step < total.
        total: the optimiser steps of the whole run, at least 1.
        warmup: share of the run with a rising rate, in [0, 1].
        final: factor of the last step, in [0, 1].

    Returns:
        A factor in (0, 1], or 0 at the last step where ``final`` is 0.

    Raises:
        ValueError: ``step`` lies outside the run.

    Source: SGDR (arXiv 1608.03983, eq. 5), one period without a restart.

    >>> [round(lr_factor(step, 5, 0.2, 0.1), 3) for step in range(5)]
    [0.5, 1.0, 0.775, 0.325, 0.1]
    """
    if not 0 <= step < total:
        raise ValueError(f"step {step} is outside a run of {total} steps")
    rising = min(round(warmup * total), total - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    falling = total - 1 - rising
    share = (step - rising) / falling if falling else 0.0
    high = 0.5 * (1 + math.cos(math.pi * share))
    return high + (1 - high) * final


def parameter_groups(backbone: nn.Module, head: nn.Module, config: Optim) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, every trainable parameter in exactly one group.

    Norms, biases and other parameters of at most one dimension are not decayed, nor those that the module's optional
    ``no_weight_decay()`` names (an iterable of parameter names). With ``layer_decay`` d < 1 a backbone of L layers
    trains layer k at ``lr * d ** (L - k)``: the last one (k = L - 1) at ``lr * d``, the one nearest the image at
    ``lr * d ** L`` (ELECTRA, arXiv 2003.10555, section A.2). The head keeps its whole rate, ``head_lr`` or ``lr``. A
    parameter shared by both belongs to the backbone; frozen parameters are left out.

    Args:
        backbone: a ``contracts.Backbone``; ``layer_of`` and ``depth`` are asked for only when ``layer_decay`` < 1.
        head: a ``contracts.Head``.
        config: the recipe's ``optim``.

    Returns:
        Groups for a torch optimiser, in the order of the parameters, each with ``name``, ``lr``, ``base_lr`` (the rate
        at factor 1, for :func:`set_lr`) and ``weight_decay``.

    Raises:
        UsageError: ``layer_decay`` < 1 and the backbone does not number its layers.
        PluginError: the backbone numbers a layer outside its own depth.
    """
    factor = _layer_factor(backbone, config.layer_decay)
    head_lr = config.lr if config.head_lr is None else config.head_lr
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    seen: set[int] = set()
    for part, name, parameter, plain in _parameters(backbone, head):
        if id(parameter) in seen or not parameter.requires_grad:
            continue
        seen.add(id(parameter))
        lr = config.lr * factor(name) if part == "backbone" else head_lr
        group = groups.setdefault((part, lr, plain), _group(part, lr, 0.0 if plain else config.weight_decay))
        group["params"].append(parameter)
    return list(groups.values())


def _parameters(backbone: nn.Module, head: nn.Module) -> Iterator[tuple[str, str, nn.Parameter, bool]]:
    """Part, name, parameter, and whether it is spared from weight decay."""
    for part, module in (("backbone", backbone), ("head", head)):
        offer = getattr(module, "no_weight_decay", None)
        spared = frozenset(offer()) if callable(offer) else frozenset()
        for name, parameter in module.named_parameters():
            yield part, name, parameter, parameter.ndim <= 1 or name in spared


def _group(part: str, lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": [], "name": part, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


def _layer_factor(backbone: nn.Module, decay: float) -> Callable[[str], float]:
    if decay == 1:
        return lambda name: 1.0
    layer_of, depth = getattr(backbone, "layer_of", None), getattr(backbone, "depth", None)
    if not callable(layer_of) or not isinstance(depth, int):
        raise UsageError(
            f"layer_decay is {decay}, but the backbone {type(backbone).__name__} does not number its layers",
            where="optim.layer_decay",
            cure="Set optim.layer_decay to 1, or use a backbone that offers layer_of(name) and depth.",
        )

    def factor(name: str) -> float:
        layer = layer_of(name)
        if not 0 <= layer < depth:
            raise PluginError(
                f"layer_of({name!r}) is {layer}, outside a depth of {depth}",
                where=f"backbone {type(backbone).__name__}",
                cure="Correct layer_of or depth in the backbone, or set optim.layer_decay to 1.",
            )
        return float(decay ** (depth - layer))

    return factor


def build_optimizer(groups: list[dict[str, Any]], config: Optim, device: torch.device | str) -> AdamW:
    """AdamW (arXiv 1711.05101), fused where the device has such a kernel.

    Args:
        groups: what :func:`parameter_groups` returned; the parameters are on ``device`` already.
        config: the recipe's ``optim``.
        device: where the parameters are.

    Returns:
        The optimiser. After its ``load_state_dict`` the moments have the memory layout of their parameters, whatever
        layout they were saved in: the fused CPU kernel walks memory and mixes up elements where layouts differ.
    """
    beta1, beta2 = config.betas
    fused = torch.device(device).type in FUSED
    optimizer = AdamW(groups, lr=config.lr, betas=(beta1, beta2), weight_decay=config.weight_decay, fused=fused)
    optimizer.register_load_state_dict_post_hook(_match_layout)
    return optimizer


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to ``factor`` times its ``base_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@contextmanager
def ascended(module: nn.Module, rho: float) -> Iterator[None]:
    """While the context is open every parameter lies ``rho * g / ||g||`` further, g being its gradient now.

    The norm is over the gradients of all parameters together, in float32 (arXiv 2010.01412, eq. 2, with p = 2). A
    common factor of the gradients, such as that of an fp16 scaler, does not matter. Where all are 0 nothing moves. The
    parameters come back bit for bit, also after an exception.
    """
    moved = [parameter for parameter in module.parameters() if parameter.grad is not None]
    kept = [parameter.detach().clone() for parameter in moved]
    _climb(moved, rho)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, kept, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def _climb(parameters: list[nn.Parameter], rho: float) -> None:
    gradients = [cast("Tensor", parameter.grad) for parameter in parameters]
    norm = torch.linalg.vector_norm(torch.stack([gradient.float().norm() for gradient in gradients]))
    length = torch.where(norm > 0, rho / norm, 0.0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.add_(gradient * length)


@contextmanager
def unchanged_buffers(*modules: nn.Module) -> Iterator[None]:
    """Put the buffers of the modules, running statistics among them, back when the context ends."""
    kept = [(module, name, value.detach().clone()) for module in modules for name, value in module.named_buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, value in kept:
                module.get_buffer(name).copy_(value)


def ema_decay(step: int, config: Ema) -> float:
    """The decay of update ``step`` (from 0): ``min(decay, (1 + step) / (10 + step))`` with warm-up, else ``decay``.

    Source: the ``num_updates`` rule of TensorFlow's ``ExponentialMovingAverage``.
    """
    return min(config.decay, (1 + step) / (10 + step)) if config.warmup else config.decay


def ema_start(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters and persistent buffers of a module, by name: the average before the first update.

    A tensor with several names is kept once, under its first name. Pass the bare module, not its compiled or
    distributed wrapper, so that the names are those of the saved weights.
    """
    return {name: value.detach().clone() for name, value in _tensors(module).items()}


def ema_update(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move an average towards the module, in place: ``average = decay * average + (1 - decay) * value``.

    Parameters and floating buffers (such as running statistics) are averaged; other buffers (such as counters) are
    copied.

    Args:
        average: from :func:`ema_start`, or loaded, on the devices of the module.
        module: the module just trained.
        decay: in [0, 1], from :func:`ema_decay`.
    """
    pairs = [(average[name], value.detach()) for name, value in _tensors(module).items()]
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    with torch.no_grad():
        if floating:
            lerp = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # public, but torch does not annotate it
            lerp([mean for mean, _ in floating], [value for _, value in floating], None)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)


@contextmanager
def ema_swapped(module: nn.Module, average: dict[str, Tensor] | None) -> Iterator[None]:
    """While the context is open the module holds the average and ``average`` the trained values; then they swap back.

    Both are restored bit for bit, also after an exception. Tensors are exchanged in place, one at a time, so compiled
    and distributed wrappers see the average too, and no second copy of the weights is made. With ``average`` None
    nothing happens.
    """
    if average is None:
        yield
        return
    _exchange(module, average)
    try:
        yield
    finally:
        _exchange(module, average)


@torch.no_grad()
def _exchange(module: nn.Module, average: dict[str, Tensor]) -> None:
    for name, value in _tensors(module).items():
        held = value.detach().clone()
        value.copy_(average[name])
        average[name].copy_(held)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers themselves, by name, each tensor once."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            first.setdefault(id(value), (name, value))
    return dict(first.values())
