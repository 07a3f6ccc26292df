"""Every way one image file can be unusable has its own reason."""

import contextlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlt_cli.data.decode import Unreadable, decode


def picture(side: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def missing(path: Path) -> None:
    assert not path.exists()


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"x")


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def dicom(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM" + bytes(200))


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n")


def truncated_png(path: Path) -> None:
    picture().save(path, "PNG")
    path.write_bytes(path.read_bytes()[:2000])


def truncated_jpeg(path: Path) -> None:
    picture().save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:1500])


def header_only(path: Path) -> None:
    picture().save(path, "PNG")
    path.write_bytes(path.read_bytes()[:20])


def flipped_byte(path: Path) -> None:
    picture().save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def one_pixel(path: Path) -> None:
    picture(1).save(path, "PNG")


def tiny(path: Path) -> None:
    Image.fromarray(np.arange(15 * 200, dtype=np.uint16).reshape(15, 200)).save(path, "PNG")


def enormous(path: Path) -> None:
    path.write_bytes(png(40_000, 40_000, 8, 0, bytes(100)))


def too_large(path: Path) -> None:
    path.write_bytes(png(11_000, 10_000, 8, 0, bytes(100)))


def animated_gif(path: Path) -> None:
    picture().save(path, "GIF", save_all=True, append_images=[picture(seed=1), picture(seed=2)])


def animated_png(path: Path) -> None:
    picture().save(path, "PNG", save_all=True, append_images=[picture(seed=1)])


def multi_page(path: Path) -> None:
    picture().save(path, "TIFF", save_all=True, append_images=[picture(seed=1)])


def constant(path: Path) -> None:
    Image.new("L", (64, 64), 0).save(path, "PNG")


def sixteen_bit_colour(path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 4096, (32, 32 * 3)).astype(">u2")
    path.write_bytes(png(32, 32, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows)))


def not_finite(path: Path) -> None:
    values = np.random.default_rng(0).random((32, 32), np.float32)
    values[3, 4] = np.nan
    Image.fromarray(values).save(path, "TIFF")


CASES: list[tuple[Callable[[Path], None], str]] = [
    (missing, "file not found"),
    (below_a_file, "file not found"),
    (directory, "is a directory"),
    (pipe, "is not a regular file"),
    (empty, "is empty (zero bytes)"),
    (text, "is not an image that can be read"),
    (dicom, "is a DICOM file"),
    (postscript, "is not an image that can be read"),
    (truncated_png, "is truncated"),
    (truncated_jpeg, "is truncated"),
    (header_only, "is truncated"),
    (flipped_byte, "is damaged"),
    (one_pixel, "has 1 x 1 pixels, at least 16 x 16 are needed"),
    (tiny, "has 200 x 15 pixels"),
    (enormous, "has more than 100 megapixels"),
    (too_large, "has 11000 x 10000 pixels, the limit is 100 megapixels"),
    (animated_gif, "has 3 pages or frames"),
    (animated_png, "has 2 pages or frames"),
    (multi_page, "has 2 pages or frames"),
    (constant, "has one grey value only (0)"),
    (sixteen_bit_colour, "16 bits per channel in colour"),
    (not_finite, "not finite numbers"),
]


@pytest.mark.parametrize(("make", "reason"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_reason(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "folder" / "image.png"
    path.parent.mkdir()
    make(path)
    with pytest.raises(Unreadable) as caught:
        decode(path, 32, "pad")
    assert caught.value.reason.startswith(reason) or reason in caught.value.reason


def test_an_unreadable_file_says_why(tmp_path: Path, deny: Callable[[Path], None]) -> None:
    path = tmp_path / "image.png"
    picture().save(path)
    deny(path)
    with pytest.raises(Unreadable, match="Permission denied"):
        decode(path, 32)


def test_an_enormous_image_is_refused_before_decoding(tmp_path: Path) -> None:
    """1.6 gigapixels would take more memory than the limit set here."""
    import resource

    path = tmp_path / "image.png"
    enormous(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unreadable):
        decode(path, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_no_damage_escapes_as_another_exception(tmp_path: Path) -> None:
    """Bytes flipped at random end as pixels or as a reason, never as a crash."""
    rng = np.random.default_rng(1)
    path = tmp_path / "image"
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        picture().save(path, kind)
        original = path.read_bytes()
        for _ in range(40):
            data = bytearray(original)
            for position in rng.integers(0, min(len(data), 400), 3):
                data[position] = rng.integers(0, 256)
            path.write_bytes(data)
            with contextlib.suppress(Unreadable):
                assert decode(path, 32).pixels.shape == (32, 32)
