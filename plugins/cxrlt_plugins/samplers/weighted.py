"""Images drawn in proportion to weights, with a cap per patient: what the samplers of this package share.

A sampler says how often each image shall be drawn on average (its rate). The draws of an epoch are those of systematic
sampling (Madow and Madow, Annals of Mathematical Statistics 15, 1944): the rates are laid end to end in random order,
and a comb of step 1 with a random offset picks the images. So an image of rate r is drawn floor(r) times and once more
with probability r - floor(r), every epoch has the same number of draws, and the means are those of independent draws
without their scatter. The images of a patient lie side by side, which makes the same true of every patient: one whose
rates add up to at most k is never drawn more than k times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cxrlt_cli.contracts import PluginFault

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

#: Rates are whole multiples of 1 / UNIT, so that their sums are exact.
UNIT = 1 << 32

NoFinding = Literal["skip", "class"]


@dataclass(frozen=True, slots=True)
class Weighted:
    """The same rates in every epoch.

    Attributes:
        units: (N,) rate of each image in draws per epoch, times ``UNIT``; they add up to whole draws.
        patients: (N,) codes 0 to P - 1, each of them present.
        seed: >= 0.
    """

    units: Integers
    patients: Integers
    seed: int

    def indices(self, epoch: int) -> Integers:
        """Positions in random order, as many in every epoch; pure in (seed, epoch).

        Only raw words of Philox are used, whose stream NumPy promises for good.
        """
        source = np.random.Philox(np.random.SeedSequence((self.seed, epoch)))
        place = _ranks(source.random_raw(int(self.patients.max()) + 1))[self.patients]
        order = np.lexsort((source.random_raw(len(self.units)), place))
        offset = int(source.random_raw(1)[0]) % UNIT
        counts = np.diff((np.cumsum(self.units[order]) + offset) // UNIT, prepend=0)
        drawn = np.repeat(order, counts)
        return drawn[np.argsort(source.random_raw(len(drawn)), kind="stable")].astype(np.int64, copy=False)

    def expected(self, epoch: int) -> Floats:
        """(N,) mean draws of each image; the same in every epoch."""
        return self.units / UNIT


@dataclass(frozen=True, slots=True)
class Patients:
    """Who owns which image.

    Attributes:
        codes: (N,) 0 to P - 1, each of them present.
        cap: largest number of draws of one patient in an epoch, or None.
    """

    codes: Integers
    cap: int | None

    def sums(self, values: Floats) -> Floats:
        """(N,) -> (P,), added up by patient."""
        return np.bincount(self.codes, weights=values).astype(np.float64, copy=False)


def patients_of(patients: Integers, cap: int | None) -> Patients:
    """Codes made gapless.

    Raises:
        PluginFault: there is no image, or the cap is less than 1.
    """
    if len(patients) == 0:
        raise PluginFault("there is no image to draw", cure="Prepare a training split that is not empty.")
    if cap is not None and cap < 1:
        raise PluginFault(f"cap is {cap}", where="sampler", cure="Give cap a value of at least 1, or null for none.")
    return Patients(np.unique(patients, return_inverse=True)[1].astype(np.int64, copy=False), cap)


def in_proportion(weights: Floats, patients: Patients, draws: int | None, seed: int) -> Weighted:
    """The sampler that draws images in proportion to their weights.

    Args:
        weights: (N,) >= 0, not all of them 0.
        patients: their owners, and the cap.
        draws: of every epoch; None for what ``length`` says.
        seed: >= 0.

    Raises:
        PluginFault: ``draws`` is less than 1, or more than the cap allows.
    """
    return Weighted(spread(weights, patients, length(weights, patients, draws)), patients.codes, seed)


def length(weights: Floats, patients: Patients, draws: int | None) -> int:
    """Draws of an epoch: ``draws``, or as many as there are images, or fewer where the cap allows no more.

    Args:
        weights: (N,) >= 0. Only patients with a weight above 0 can be drawn.
        patients: their owners, and the cap.
        draws: what the user asked for, or None.

    Raises:
        PluginFault: ``draws`` is less than 1, or more than the cap allows.
    """
    most = None if patients.cap is None else patients.cap * int(np.count_nonzero(patients.sums(weights)))
    if draws is None:
        return len(weights) if most is None else min(len(weights), most)
    if draws < 1:
        raise PluginFault(f"draws is {draws}", where="sampler", cure="Give draws a value of at least 1, or null.")
    if most is not None and draws > most:
        raise PluginFault(
            f"{draws} draws are more than the {most} that a cap of {patients.cap} a patient allows",
            where="sampler",
            cure=f"Set draws to at most {most} (null takes that), or a higher cap.",
        )
    return draws


def spread(weights: Floats, patients: Patients, draws: int) -> Integers:
    """Rates (N,) in units of 1 / ``UNIT`` that add up to ``draws``.

    They are proportional to the weights. What a patient would get beyond the cap goes to all other patients, again in
    proportion to their weights.

    Args:
        weights: (N,) >= 0, not all of them 0.
        patients: their owners, and the cap.
        draws: at most what ``length`` allows.
    """
    sums = patients.sums(weights)
    limits = np.where(sums > 0, draws if patients.cap is None else patients.cap, 0)
    return in_units(weights * _factors(sums, limits, draws)[patients.codes], limits, patients.codes, draws)


def _factors(sums: Floats, limits: Integers, draws: int) -> Floats:
    """(P,) factors f with sums * f <= limits and sum(sums * f) = draws, equal wherever the limit is not reached."""
    ceiling = np.divide(limits, sums, out=np.full(len(sums), np.inf), where=sums > 0)
    order = np.argsort(ceiling, kind="stable")
    full = np.concatenate([[0], np.cumsum(limits[order])[:-1]])  # draws of the patients before, all at their limits
    rest = np.cumsum(sums[order][::-1])[::-1]
    common = np.divide(draws - full, rest, out=np.full(len(sums), np.inf), where=rest > 0)
    fits = np.flatnonzero(common <= ceiling[order])
    factors: Floats = np.minimum(ceiling, common[fits[0]]) if len(fits) else ceiling
    return factors


def in_units(rates: Floats, limits: Integers, codes: Integers, draws: int) -> Integers:
    """Rates rounded to units so that they add up to ``draws``, and for each patient to no more than its limit.

    What rounding leaves over, less than N units, goes to the largest image of patients that have room for it.

    Args:
        rates: (N,) draws per epoch, which add up to ``draws`` but for rounding.
        limits: (P,) draws a patient may have.
        codes: (N,) patient of each image.
        draws: sum of all rates, at most the sum of the limits.
    """
    units = np.floor(rates * UNIT).astype(np.int64)
    order = np.lexsort((rates, codes))
    largest = order[np.flatnonzero(np.diff(codes[order], append=len(limits)))]
    held = np.zeros(len(limits), np.int64)
    np.add.at(held, codes, units)
    room = limits * UNIT - held
    units[largest] += np.minimum(room, 0)
    missing = draws * UNIT - int(units.sum())
    room = np.clip(room, 0, max(missing, 0))
    units[largest] += np.clip(missing - (np.cumsum(room) - room), 0, room)
    units[int(np.argmax(units))] += min(missing, 0)
    return units


def by_class(labels: npt.NDArray[np.int8], exponent: float, no_finding: NoFinding) -> Floats:
    """Weights (N,) that add up to 1: a class is drawn with probability ~ n_c^exponent, then one of its n_c images.

    An image's weight is the sum over its positive classes of p_c / n_c. Classes without positives are not drawn, and
    an unknown label is not a positive.

    Args:
        labels: (N, C) 1, 0 or -1.
        exponent: 0 draws all classes alike.
        no_finding: "skip": images without any positive are never drawn; "class": they are one class more.

    Raises:
        PluginFault: there is nothing to draw.
    """
    member = labels == 1
    if no_finding == "class":
        member = np.column_stack([member, ~member.any(axis=1)])
    counts = member.sum(axis=0)
    if not counts.any():
        raise PluginFault(
            "no training image is labelled with any finding, so there is no class to draw",
            where="sampler",
            cure="Use the sampler uniform, or set no_finding to class.",
        )
    present = np.maximum(counts, 1).astype(np.float64)
    chance = np.where(counts > 0, present**exponent, 0.0)
    weights: Floats = np.dot(member, chance / chance.sum() / present)
    return weights


def _ranks(keys: npt.NDArray[np.uint64]) -> Integers:
    """Place of each key among all, without ties."""
    ranks = np.empty(len(keys), np.int64)
    ranks[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return ranks
