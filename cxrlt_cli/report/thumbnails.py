"""Thumbnails of prepared images as JPEG, plain and with heat maps. Never the pixels themselves."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.data.shards import Reader

Key = TypeVar("Key", bound=Hashable)

#: Longest side, in pixels.
SIDE = 96
#: JPEG qualities, the first of which keeps all pictures of a kind within so many bytes.
_QUALITIES, BUDGET = (78, 60, 40, 20), 120_000
#: What a heat map is drawn in, and how much of the picture it covers at most.
_COLOUR, _COVER = (255, 140, 0), 0.65


def side_of(size: int) -> int:
    """Side of the thumbnails of prepared images of ``size`` pixels: at most 96, and always smaller than the image."""
    return max(1, min(SIDE, size * 3 // 4))


def read_small(prepared: Prepared, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The images at ``rows`` (n,) of the manifest, reduced: (n, side, side).

    Raises:
        DataError: a shard is missing or damaged.
    """
    from PIL import Image

    side = side_of(prepared.size)
    images = np.empty((len(rows), prepared.size, prepared.size), np.uint8)
    reader = Reader(prepared)
    try:
        reader.read(np.asarray(rows, np.int64), images)
    finally:
        reader.close()
    shape = (side, side)
    small = [np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BOX)) for image in images]
    return np.stack(small) if small else np.zeros((0, side, side), np.uint8)


def jpegs(pictures: Mapping[Key, npt.NDArray[np.uint8]]) -> dict[Key, bytes]:
    """Grey (side, side) or coloured (side, side, 3) pictures as JPEG, together within ``BUDGET`` where that can be."""
    made: dict[Key, bytes] = {}
    for quality in _QUALITIES:
        made = {key: _jpeg(pixels, quality) for key, pixels in pictures.items()}
        if sum(map(len, made.values())) <= BUDGET:
            break
    return made


def _jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def heated(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Grey pixels (side, side) under a heat map (h, w) in [0, 1], enlarged to their size: (side, side, 3)."""
    from PIL import Image

    shape = (pixels.shape[1], pixels.shape[0])
    large = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(shape, Image.Resampling.BILINEAR))
    cover = (_COVER * np.clip(large, 0, 1))[..., None]
    mixed = (1 - cover) * pixels[..., None] + cover * np.array(_COLOUR)
    return np.asarray(mixed.round().astype(np.uint8))
