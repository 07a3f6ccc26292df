"""Decoding: every kind of pixel, no grey level lost, resizing against an exact filter."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cxrlt_cli.data.decode import Unreadable, decode, fit_square, window

SIDE = 64


def gradient(height: int = SIDE, width: int = SIDE, top: int = 255) -> np.ndarray:
    """A smooth field from 0 to ``top``, brighter to the right and to the bottom."""
    y, x = np.mgrid[0:height, 0:width]
    field = x / (width - 1) * 0.6 + y / (height - 1) * 0.4
    return np.rint(field * top)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_eight_bit_grey_of_the_same_size_is_unchanged(tmp_path: Path) -> None:
    grey = gradient().astype(np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(grey))
    result = decode(path, SIDE, "pad")
    np.testing.assert_array_equal(result.pixels, grey)
    assert (result.width, result.height, result.bits) == (SIDE, SIDE, 8)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.file_size == path.stat().st_size


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_modes_that_hold_the_same_grey_values_give_the_same_pixels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient().astype(np.uint8))
    reference = decode(saved(tmp_path / "grey.png", image), 32, "pad")
    result = decode(saved(tmp_path / "other.png", image.convert(mode)), 32, "pad")
    np.testing.assert_array_equal(result.pixels, reference.pixels)
    assert result.pixel_sha256 == reference.pixel_sha256
    assert result.sha256 != reference.sha256


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    colour[:, :20, 0], colour[:, 20:40, 1], colour[:, 40:, 2] = 255, 255, 255
    pixels = decode(saved(tmp_path / "a.png", Image.fromarray(colour)), SIDE, "pad").pixels
    assert pixels[0, [0, 30, 50]].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    grey = gradient().astype(np.uint8)
    alpha = np.full_like(grey, 255)
    alpha[:, 32:] = 0
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    pixels = decode(saved(tmp_path / "a.png", image), SIDE, "pad").pixels
    np.testing.assert_array_equal(pixels[:, :32], grey[:, :32])
    assert not pixels[:, 32:].any()


def test_one_bit_images_are_read(tmp_path: Path) -> None:
    image = Image.fromarray(gradient() > 128)
    result = decode(saved(tmp_path / "a.png", image), SIDE, "pad")
    assert result.bits == 1
    assert set(np.unique(result.pixels)) == {0, 255}


@pytest.mark.parametrize(("top", "bits"), [(1000, 10), (4095, 12), (9000, 14), (65535, 16)])
def test_bit_depth_is_found_from_the_content(tmp_path: Path, top: int, bits: int) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient(top=top).astype(np.uint16)))
    assert decode(path, SIDE, "pad").bits == bits


def test_a_twelve_bit_image_uses_all_256_levels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient(400, 400, 4095).astype(np.uint16)))
    pixels = decode(path, 400, "pad").pixels
    assert len(np.unique(pixels)) == 256
    assert (pixels == 255).mean() == pytest.approx(0.005, abs=0.003)


def test_eight_bit_values_in_a_sixteen_bit_file_are_taken_as_they_are(tmp_path: Path) -> None:
    grey = gradient(top=200)
    wide = decode(saved(tmp_path / "a.png", Image.fromarray(grey.astype(np.uint16))), 32, "pad")
    narrow = decode(saved(tmp_path / "b.png", Image.fromarray(grey.astype(np.uint8))), 32, "pad")
    assert wide.bits == 8
    np.testing.assert_array_equal(wide.pixels, narrow.pixels)
    assert wide.pixel_sha256 == narrow.pixel_sha256


def wide_image(kind: str, values: np.ndarray) -> Image.Image:
    if kind == "I;16B":
        return Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())
    return Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]))


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "F"])
def test_every_wide_mode_gives_the_same_pixels(tmp_path: Path, kind: str) -> None:
    values = gradient(top=30000)
    path = saved(tmp_path / "a.tif", wide_image(kind, values))
    expected = fit_square(values.astype(np.uint16), 48, "pad", windowed=True)
    np.testing.assert_array_equal(decode(path, 48, "pad").pixels, expected)


def test_negative_values_are_shifted(tmp_path: Path) -> None:
    values = gradient(top=3000)
    shifted = decode(saved(tmp_path / "a.tif", Image.fromarray((values - 1024).astype(np.int32))), SIDE, "pad")
    plain = decode(saved(tmp_path / "b.tif", Image.fromarray(values.astype(np.int32))), SIDE, "pad")
    np.testing.assert_array_equal(shifted.pixels, plain.pixels)
    assert shifted.bits == plain.bits == 12


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    values = gradient(top=4000).astype(np.uint16)
    plain = decode(saved(tmp_path / "a.tif", Image.fromarray(values)), SIDE, "pad")
    inverted = decode(saved(tmp_path / "b.tif", Image.fromarray(values), tiffinfo={262: 0}), SIDE, "pad")
    difference = inverted.pixels.astype(int) - (255 - plain.pixels.astype(int))
    assert np.abs(difference).max() <= 1


def test_the_window_ignores_a_constant_border() -> None:
    body = gradient(300, 300, 2000) + 1000
    bordered = np.zeros((500, 500))
    bordered[100:400, 100:400] = body
    bordered[:60] = 4095
    low, high = window(bordered.astype(np.uint16))
    assert (low, high) == pytest.approx(tuple(np.percentile(body, (0.5, 99.5))), abs=5)


def test_the_window_of_two_grey_values_is_their_range() -> None:
    image = np.full((100, 100), 500, np.uint16)
    image[40:60] = 3000
    low, high = window(image)
    assert (low, high) == (500, 3000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(gradient(40, 64).astype(np.uint8)), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    result = decode(path, 64, "pad")
    assert (result.height, result.width) == expected.shape
    inner = result.pixels[12:52] if expected.shape == (40, 64) else result.pixels[:, 12:52]
    np.testing.assert_array_equal(inner, expected)


# -- resizing ------------------------------------------------------------------------------------------------------


def lanczos(length: int, size: int) -> np.ndarray:
    """The (size, length) matrix of an antialiased Lanczos-3 filter, in float64."""
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (np.arange(size)[:, None] + 0.5) * scale
    x = (np.arange(length)[None] + 0.5 - centres) / stretch
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


def noise(height: int, width: int, top: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(gradient(height, width, top) + rng.normal(0, top / 10, (height, width)), 0, top)


def test_eight_bit_resizing_is_exact() -> None:
    grey = noise(211, 187, 255).astype(np.uint8)
    exact = lanczos(211, 96) @ grey.astype(np.float64) @ lanczos(187, 96).T
    np.testing.assert_allclose(fit_square(grey, 96, "squash", windowed=False), np.clip(exact, 0, 255), atol=0.501)


def test_wide_resizing_is_rounded_once() -> None:
    grey = noise(211, 187, 4095).astype(np.uint16)
    low, high = window(grey)
    exact = (lanczos(211, 96) @ grey.astype(np.float64) @ lanczos(187, 96).T - low) * 255 / (high - low)
    np.testing.assert_allclose(fit_square(grey, 96, "squash", windowed=True), np.clip(exact, 0, 255), atol=0.505)


def test_small_images_are_enlarged() -> None:
    grey = noise(20, 20, 255).astype(np.uint8)
    exact = lanczos(20, 64) @ grey.astype(np.float64) @ lanczos(20, 64).T
    np.testing.assert_allclose(fit_square(grey, 64, "pad", windowed=False), np.clip(exact, 0, 255), atol=0.501)


@pytest.mark.parametrize(("height", "width"), [(100, 50), (50, 100), (99, 31), (1000, 17)])
def test_padding_keeps_the_aspect_and_centres(height: int, width: int) -> None:
    pixels = fit_square(np.full((height, width), 200, np.uint8), 64, "pad", windowed=False)
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    assert len(rows) / len(columns) == pytest.approx(height / width, rel=0.5 / min(len(rows), len(columns)) + 0.01)
    assert max(len(rows), len(columns)) == 64
    for found in (rows, columns):
        assert abs(found[0] - (63 - found[-1])) <= 1


def test_squashing_fills_the_square() -> None:
    assert fit_square(np.full((100, 50), 200, np.uint8), 64, "squash", windowed=False).min() == 200


def test_decoding_is_repeatable(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise(90, 80, 60000).astype(np.uint16)))
    first, second = decode(path, 32), decode(path, 32)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.pixel_sha256 == second.pixel_sha256


def test_real_sixteen_bit_radiograph(shared: Path) -> None:
    files = sorted((shared / "data" / "png16").glob("*.png"))
    if not files:
        pytest.skip("no 16-bit PNG among the shared data")
    result = decode(files[0], 256, "pad")
    assert result.bits == 16
    assert len(np.unique(result.pixels)) > 250
    assert 60 < np.median(result.pixels[result.pixels > 0]) < 240


def test_the_reason_reads_on_after_the_name(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(tmp_path / "absent.png", SIDE)
    assert caught.value.reason == "file not found"
