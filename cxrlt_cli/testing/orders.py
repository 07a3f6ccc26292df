"""Rules of ``cxrlt.samplers``; the contract is ``cxrlt_cli.contracts.Sampler``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.testing.rules import Broken, Rule, Skip, Subject

IMAGES, EPOCHS = 200, 3
#: Two images a patient; classes of 40, 10 and 1 %, one without positives; every tenth label unknown.
_SHARES = (0.4, 0.1, 0.01, 0.0)


def _labels() -> npt.NDArray[np.int8]:
    rng = np.random.default_rng(0)
    labels = (rng.random((IMAGES, len(_SHARES))) < _SHARES).astype(np.int8)
    labels[0, 2] = 1
    labels[rng.random(labels.shape) < 0.1] = -1
    return labels


def _sampler(subject: Subject, seed: int = 0) -> Any:
    labels = _labels()
    positives, negatives = ((labels == side).sum(axis=0).tolist() for side in (1, 0))
    stats = ClassStats(("Effusion", "Mass", "Hernia", "Bulla"), tuple(positives), tuple(negatives))
    return subject.build(labels, stats, np.arange(IMAGES, dtype=np.int64) // 2, seed, EPOCHS)


def draws_positions_of_the_split(subject: Subject) -> None:
    """An epoch is a one-dimensional int64 array of positions in the training split."""
    for epoch in range(EPOCHS):
        order = _sampler(subject).indices(epoch)
        if not isinstance(order, np.ndarray) or order.dtype != np.int64 or order.ndim != 1:
            raise Broken(f"indices({epoch}) is not a one-dimensional int64 array but {type(order).__name__}")
        if not len(order) or order.min() < 0 or order.max() >= IMAGES:
            raise Broken(f"indices({epoch}) has {len(order)} positions, not all of them in 0..{IMAGES - 1}")


def epochs_have_one_length(subject: Subject) -> None:
    """Every epoch has the same number of draws: the steps of a run are counted before it begins."""
    for seed in range(2):
        lengths = {len(_sampler(subject, seed).indices(epoch)) for epoch in range(EPOCHS)}
        if len(lengths) > 1:
            raise Broken(f"epochs have {', '.join(map(str, sorted(lengths)))} draws")


def is_pure_in_seed_and_epoch(subject: Subject) -> None:
    """The order follows from seed and epoch alone: not from earlier epochs, nor from numpy's global generator."""
    state, sampler = _global_state(), _sampler(subject)
    forwards = [sampler.indices(epoch) for epoch in range(EPOCHS)]
    backwards = [_sampler(subject).indices(epoch) for epoch in reversed(range(EPOCHS))][::-1]
    if not all(np.array_equal(one, other) for one, other in zip(forwards, backwards, strict=True)):
        raise Broken("the order of an epoch depends on which epochs were asked for before, or on chance")
    if _global_state() != state:
        raise Broken("it draws from numpy's global generator")


def _global_state() -> str:
    """Where numpy's global generator stands."""
    return repr(np.random.get_state(legacy=False)["state"])


def orders_differ(subject: Subject) -> None:
    """Another seed or another epoch gives another order."""
    orders = {tuple(_sampler(subject, seed).indices(epoch)) for seed in range(2) for epoch in range(2)}
    if len(orders) < 4:
        raise Broken("two seeds or two epochs have the same order")


def the_order_within_an_epoch_is_random(subject: Subject) -> None:
    """Positions that fill no whole batch are left out at the end of an epoch, so no image may always stand there."""
    sampler = _sampler(subject)
    last = [set(sampler.indices(epoch)[-10:].tolist()) for epoch in range(EPOCHS)]
    if set.intersection(*last) and len(set.union(*last)) < 15:
        raise Broken("the same images stand at the end of every epoch; shuffle what is drawn")


def expectations_are_those_of_the_draws(subject: Subject) -> None:
    """`expected(epoch)`, where offered, is how often each image is drawn on average."""
    sampler = _sampler(subject)
    if not hasattr(sampler, "expected"):
        raise Skip("the sampler offers no expected(); the host counts draws instead")
    expected = np.asarray(sampler.expected(0))
    if expected.shape != (IMAGES,) or (expected < 0).any():
        raise Broken(f"expected(0) has the shape {expected.shape}, or holds a number below 0")
    draws = len(sampler.indices(0))
    if abs(expected.sum() - draws) > 0.02 * draws:
        raise Broken(f"expected(0) adds up to {expected.sum():.1f}, and an epoch has {draws} draws")
    seeds = 60
    counts = [np.bincount(_sampler(subject, seed).indices(0), minlength=IMAGES) for seed in range(seeds)]
    drawn = np.mean(counts, axis=0)
    off = np.abs(drawn - expected) / np.sqrt(np.maximum(expected, 1 / seeds) / seeds)
    if off.max() > 6:
        image = int(off.argmax())
        raise Broken(
            f"image {image} is drawn {drawn[image]:.2f} times on average; expected() says {expected[image]:.2f}"
        )


RULES: Sequence[Rule] = (
    draws_positions_of_the_split,
    epochs_have_one_length,
    is_pure_in_seed_and_epoch,
    orders_differ,
    the_order_within_an_epoch_is_random,
    expectations_are_those_of_the_draws,
)
