"""One image file -> one square uint8 array, or the reason why not.

Everything that is wrong with a single file is an ``Unreadable``; nothing is painted black, clipped or guessed. Grey
values are resized in float32 and rounded once: against an exact float64 Lanczos filter this gets every level right,
where rounding to 8 bits first gets 12-16 % of them wrong by one.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Fit = Literal["pad", "squash"]

#: Larger images are refused from their header, before any pixel is decoded.
MAX_PIXELS = 100_000_000
#: Larger files are refused unread: 100 megapixels of uncompressed 16-bit colour have 800 MB.
MAX_BYTES = 1 << 30
#: Smaller images hold no radiograph.
MIN_SIDE = 16
#: Grey values of more than 8 bits are mapped to 0-255 between these percentiles of the image.
WINDOW = (0.5, 99.5)
#: An extreme grey value that covers more than this share of the image is background and does not count in the window.
BACKGROUND_SHARE = 0.01
#: Percentiles are taken over a regular grid of at least this many pixels.
SAMPLE = 1 << 18
#: What is tried. Formats whose reading starts other programs (EPS) or that hold no radiographs are left out.
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM")

_ORIENTATION, _PHOTOMETRIC, _WHITE_IS_ZERO = 0x0112, 262, 0
_OPEN = threading.Lock()


class Unreadable(Exception):
    """One image cannot be used; ``reason`` says why and reads on after the file's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: (size, size) uint8.
        width: of the original, in pixels, after its orientation tag was applied.
        height: of the original.
        bits: grey levels of the original as a bit count, found from its content: 1, 8, 10, 12, ... 32.
        sha256: of the file, hexadecimal.
        pixel_sha256: of the original grey values and their shape, hexadecimal: equal for copies in another format.
        file_size: in bytes.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    bits: int
    sha256: str
    pixel_sha256: str
    file_size: int


def decode(path: Path | str, size: int, fit: Fit = "pad") -> Decoded:
    """Read one image file.

    Args:
        path: the file: PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP or PGM; grey of 1 to 32 bits, palette or colour.
        size: side of the result, in pixels.
        fit: "pad" keeps the aspect and centres the image on black, "squash" does not keep it.

    Raises:
        Unreadable: the file is missing, not a file, empty, not an image, damaged, too large, too small, has several
            pages or frames, or one grey value only.
    """
    data = _read(Path(path))
    try:
        grey, bits = _grey(data)
    except (Unreadable, MemoryError):
        raise
    except (
        Exception
    ) as error:  # a decoder meeting a damaged file raises anything, struct.error and SyntaxError included
        raise Unreadable(_damage(error)) from error
    height, width = grey.shape
    square = fit_square(grey, size, fit, windowed=bits > 8)
    digest = hashlib.sha256(data).hexdigest()
    return Decoded(square, width, height, bits, digest, pixel_hash(grey), len(data))


def pixel_hash(grey: npt.NDArray[np.generic]) -> str:
    """SHA-256 of the shape, type and values of an array, hexadecimal."""
    digest = hashlib.sha256(f"{grey.shape}{grey.dtype.str}".encode())
    digest.update(np.ascontiguousarray(grey).data)
    return digest.hexdigest()


def fit_square(grey: npt.NDArray[np.generic], size: int, fit: Fit, *, windowed: bool) -> npt.NDArray[np.uint8]:
    """Resize (h, w) grey values with antialiasing to (size, size) uint8.

    With ``windowed``, values are mapped from the percentile window of the image to 0-255; otherwise they are in 0-255.
    """
    height, width = grey.shape
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale))) if fit == "pad" else (size, size)
    values = _resize(grey, inner)
    if windowed:
        low, high = window(grey)
        values = (values - low) * np.float32(255 / (high - low))
    levels = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    if levels.shape == (size, size):
        return levels
    square = np.zeros((size, size), np.uint8)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    square[top : top + inner[1], left : left + inner[0]] = levels
    return square


def window(grey: npt.NDArray[np.generic]) -> tuple[float, float]:
    """The grey values (low, high) that become 0 and 255: percentiles of the image without its constant background.

    Collimator borders and burnt-out corners are one value, the lowest or the highest, over a large area. They would
    take the window's end for themselves.
    """
    step = max(1, int((grey.size / SAMPLE) ** 0.5))
    sample = grey[::step, ::step].ravel()
    body = sample
    for extreme in (sample.min(), sample.max()):
        rest = body[body != extreme]
        if sample.size - np.count_nonzero(sample != extreme) > BACKGROUND_SHARE * sample.size and rest.size:
            body = rest
    low, high = (float(value) for value in np.percentile(body.astype(np.float64), WINDOW))
    return (low, high) if high > low else (float(grey.min()), float(grey.max()))


def _resize(grey: npt.NDArray[np.generic], inner: tuple[int, int]) -> npt.NDArray[np.float32]:
    from PIL import Image

    values = grey.astype(np.float32)
    if inner == grey.shape[::-1]:
        return values
    return np.asarray(Image.fromarray(values).resize(inner, Image.Resampling.LANCZOS))


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Unreadable("is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("is not a regular file")
        if status.st_size == 0:
            raise Unreadable("is empty (zero bytes)")
        if status.st_size > MAX_BYTES:
            raise Unreadable(f"has {status.st_size >> 20} MiB, the limit is {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("file not found") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise Unreadable(f"cannot be read: {reason}") from error


def _damage(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"is truncated ({text})" if "truncated" in text.lower() else f"is damaged ({text})"


def _grey(data: bytes) -> tuple[npt.NDArray[np.generic], int]:
    """The grey values (h, w) of an encoded image and their bit depth."""
    image = _open(data)
    _check_header(image)
    orientation = image.getexif().get(_ORIENTATION, 1)
    grey, bits = _wide(image) if _is_wide(image) else _narrow(image)
    if grey.min() == grey.max():
        raise Unreadable(f"has one grey value only ({grey.min()}) in every pixel")
    return np.ascontiguousarray(_oriented(grey, orientation)), bits


def _open(data: bytes) -> PillowImage:
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns on stderr about sizes and odd metadata; both are judged below. The filter list is process-wide.
        with _OPEN, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Unreadable(f"has more than {MAX_PIXELS // 10**6} megapixels") from None
    except UnidentifiedImageError:
        if data[128:132] == b"DICM":
            raise Unreadable("is a DICOM file; convert it to 16-bit PNG first") from None
        raise Unreadable("is not an image that can be read") from None


def _check_header(image: PillowImage) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"has {width} x {height} pixels, the limit is {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        raise Unreadable(f"has {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise Unreadable(f"has {frames} pages or frames, one is expected")
    # Pillow keeps only the high byte of 16-bit colour: a 12-bit radiograph would be left with 16 grey levels
    if not _is_wide(image) and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        raise Unreadable("has 16 bits per channel in colour; save it as 16-bit grey")


def _is_wide(image: PillowImage) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _wide(image: PillowImage) -> tuple[npt.NDArray[np.generic], int]:
    """Grey values of more than 8 bits: uint8 where 8 bits are all they use, else uint16, uint32 or float32."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise Unreadable("has pixels that are not finite numbers")
        return values, 32
    low, high = int(values.min()), int(values.max())
    if low < 0:
        values, low, high = values.astype(np.int64) - low, 0, high - low
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = high - values.astype(np.int64)
    bits = max(8, high.bit_length() + high.bit_length() % 2)
    return values.astype(np.uint8 if bits == 8 else np.uint16 if bits <= 16 else np.uint32), bits


def _narrow(image: PillowImage) -> tuple[npt.NDArray[np.generic], int]:
    """Grey values of at most 8 bits per channel: luminance (ITU-R 601), which equals the channels where they are equal.

    Transparent pixels are black, as on a viewer's black background.
    """
    bits = 1 if image.mode == "1" else 8
    if not image.has_transparency_data:
        return np.asarray(image.convert("L")), bits
    colour = image.convert("RGBA")
    grey, alpha = np.asarray(colour.convert("L")), np.asarray(colour.getchannel("A"))
    if alpha.min() == 255:
        return grey, bits
    return np.rint(grey * (alpha / np.float32(255))).astype(np.uint8), bits


def _oriented(grey: npt.NDArray[np.generic], orientation: int) -> npt.NDArray[np.generic]:
    """Apply an EXIF orientation, 1 to 8; other values are ignored, as viewers do."""
    if orientation in (5, 6, 7, 8):
        grey = grey.T
    if orientation in (2, 3, 6, 7):
        grey = grey[:, ::-1]
    if orientation in (3, 4, 7, 8):
        grey = grey[::-1]
    return grey
