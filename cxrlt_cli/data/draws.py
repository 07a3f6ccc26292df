"""Random numbers of an image: pure in (seed, epoch, step, row), whoever asks and in whatever order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_BLOCK = 4  # 64-bit words that Philox makes at a time


def random_words(stream: int, *, seed: int, epoch: int, step: int, rows: Rows, count: int) -> Words:
    """Random 64-bit words for the images at ``rows`` of a global batch.

    They come from Philox4x64 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405), keyed by stream, seed, epoch and
    step; the counter is the row. Its raw words are used, which numpy keeps stable between versions.

    Args:
        stream: 32 bits that keep the numbers of one use apart from those of another.
        seed: 0 <= seed < 2**31.
        epoch: from 0, less than 2**32.
        step: from 0, less than 2**32.
        rows: (n,) int64 >= 0, any order; equal rows get equal words.
        count: words of an image, a multiple of four.

    Returns:
        (n, count) uint64.
    """
    if len(rows) == 0:
        return np.empty((0, count), np.uint64)
    first, last = int(rows.min()), int(rows.max())
    key = np.array([stream << 32 | seed, epoch << 32 | step], np.uint64)
    source = np.random.Philox(key=key, counter=first * (count // _BLOCK))
    return source.random_raw((last - first + 1) * count).reshape(-1, count)[rows - first]


def shares(words: Words) -> npt.NDArray[np.float64]:
    """Words as numbers in [0, 1), 53 bits each."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
