"""Which patients a resample holds, and how often: a pure function of (patients, seed, number of the resample)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Clusters:
    """The patients of N images.

    Attributes:
        of_image: (N,) number of each image's patient, in the sorted order of the patients' names.
        count: patients.
    """

    of_image: npt.NDArray[np.int64]
    count: int

    def having(self, images: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """How many patients have a true image, by column: (N, C) -> (C,)."""
        return np.array([len(np.unique(self.of_image[column])) for column in images.T], np.int64)


def clusters(patients: Sequence[str] | npt.NDArray[np.generic]) -> Clusters:
    """Number the patients (N,), given as names or codes; the numbers depend on which there are, not on their order."""
    names, of_image = np.unique(np.asarray(patients), return_inverse=True)
    return Clusters(of_image.astype(np.int64), len(names))


def weights(patients: Clusters, seed: int, first: int, last: int) -> Weights:
    """How often each image occurs in the resamples ``first`` to ``last - 1``: (last - first, N).

    A resample draws as many patients as there are, with replacement, and takes all images of each. Its draws come from
    Philox (Salmon et al., SC 2011) keyed with (seed, number of the resample), so it is the same in every call, however
    many resamples are asked for and in which blocks. No patient is drawn more than 255 times: with up to 255 patients
    there are no more draws, and with more it has a chance below 1e-500.
    """
    made = np.empty((last - first, len(patients.of_image)), np.uint8)
    for row, number in enumerate(range(first, last)):
        times = np.bincount(_draws(patients.count, seed, number), minlength=patients.count)
        np.take(times.astype(np.uint8), patients.of_image, out=made[row], mode="clip")
    return made


def all_but_a_share(patients: Clusters, shares: int) -> Weights:
    """Everybody once, then everybody but every ``shares``-th patient from the first on, from the second, and so on.

    Returns:
        (shares + 1, N) 1 or 0.
    """
    share = patients.of_image % shares
    return np.concatenate([np.ones((1, len(share))), share != np.arange(shares)[:, None]]).astype(np.uint8)


def _draws(count: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """``count`` numbers below ``count``: the high bits of 32-bit words times ``count``, uneven by at most 2^-32.

    Raw words are used because numpy promises the same ones in every version.
    """
    words = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw((count + 1) // 2)
    halves = np.concatenate([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)])[:count]
    return ((halves * np.uint64(count)) >> np.uint64(32)).astype(np.int64)
