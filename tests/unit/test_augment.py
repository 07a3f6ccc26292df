"""Augmentation: what is drawn, what happens to the pixels, and that neither depends on how a batch is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from cxrlt_cli.data import augment as module
from cxrlt_cli.data.augment import Drawn, augment, draw, seen
from cxrlt_cli.recipe.schema import Augment

GEOMETRY = Augment(rotate=20, shift=0.1, scale=0.2, flip=0.5)
ALL = Augment(
    **{"rotate": 20, "shift": 0.1, "scale": 0.2, "flip": 0.5},
    **{"brightness": 0.2, "contrast": 0.3, "gamma": 0.3, "noise": 0.05, "erase": 0.5},
)
AT = {"seed": 3, "epoch": 1, "step": 7}


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(count))


def still(count: int) -> Drawn:
    """The parameters that change nothing."""
    zeros, ones = np.zeros(count), np.ones(count)
    return Drawn(
        flip=np.zeros(count, bool),
        **{"zoom": ones, "angle": zeros, "right": zeros, "down": zeros},
        **{"gamma": ones, "contrast": ones, "brightness": zeros, "sigma": zeros},
        noise_seed=np.zeros(count, np.uint64),
        box=np.zeros((count, 4)),
    )


def apply(monkeypatch: pytest.MonkeyPatch, images: Tensor, config: Augment, **changes: Any) -> Tensor:
    """Augment with the parameters given instead of drawn ones."""
    values = {name: np.asarray(value) for name, value in changes.items()}
    monkeypatch.setattr(module, "draw", lambda *_, **__: replace(still(len(images)), **values))
    return augment(images, config, **AT, rows=np.arange(len(images)))


# --- what is drawn


def parameters(config: Augment = ALL, rows: Any = range(4096), **at: int) -> dict[str, np.ndarray]:
    drawn = draw(config, **{**AT, **at}, rows=np.asarray(rows, np.int64))
    return {name: getattr(drawn, name) for name in Drawn.__slots__}


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [5000], [3, 3], [], [7, 1]])
def test_a_row_has_its_parameters_whatever_stands_beside_it(rows: list[int]) -> None:
    whole, part = parameters(rows=range(5001)), parameters(rows=rows)
    for name, values in part.items():
        assert np.array_equal(values, whole[name][rows]), name


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 2}, {"step": 8}, {"epoch": 7, "step": 1}])
def test_seed_epoch_and_step_all_matter(other: dict[str, int]) -> None:
    first, second = parameters(), parameters(**other)
    for name, values in first.items():
        assert not np.array_equal(values, second[name]), name


def test_parameters_keep_their_ranges_and_shapes() -> None:
    drawn = parameters()
    bounds = {
        **{"zoom": (0.8, 1.2), "angle": (-np.pi / 9, np.pi / 9), "right": (-0.1, 0.1), "down": (-0.1, 0.1)},
        **{"gamma": (0.7, 1 / 0.7), "contrast": (0.7, 1.3), "brightness": (-0.2, 0.2), "sigma": (0, 0.05)},
    }
    for name, (low, high) in bounds.items():
        law = stats.loguniform(low, high) if name == "gamma" else stats.uniform(low, high - low)
        assert stats.kstest(drawn[name], law.cdf).pvalue > 1e-3, name
        assert drawn[name].min() >= low, name
        assert drawn[name].max() <= high, name


def test_parameters_are_independent_of_each_other_and_of_the_neighbouring_row() -> None:
    drawn = parameters()
    columns = np.stack([values.astype(float) for values in drawn.values() if values.ndim == 1])
    correlation = np.corrcoef(np.concatenate([columns, np.roll(columns, 1, axis=1)]))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08  # 5 standard errors of 4,096 rows


def test_probabilities_are_kept() -> None:
    drawn = parameters(ALL.model_copy(update={"flip": 0.3, "erase": 0.8}))
    assert drawn["flip"].mean() == pytest.approx(0.3, abs=0.04)
    assert (drawn["box"][:, 2] > 0).mean() == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 4096)])
def test_never_and_always_are_exact(share: float, count: int) -> None:
    drawn = parameters(Augment(flip=share, erase=share))
    assert drawn["flip"].sum() == count
    assert (drawn["box"][:, 2] > 0).sum() == count


def test_boxes_have_the_stated_area_and_aspect_and_lie_inside() -> None:
    top, left, bottom, right = parameters(Augment(erase=1.0))["box"].T
    area, aspect = (bottom - top) * (right - left), (bottom - top) / (right - left)
    assert stats.kstest(area, "uniform", (0.02, 0.13)).pvalue > 1e-3
    assert stats.kstest(np.log(aspect), "uniform", (np.log(0.3), -2 * np.log(0.3))).pvalue > 1e-3
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 1


def test_the_numbers_are_the_same_in_every_version() -> None:
    """A run is continued with the numbers it began with, whatever numpy is installed by then."""
    drawn = parameters(rows=[0, 1])
    assert np.rad2deg(drawn["angle"]).tolist() == pytest.approx([-10.972351066686482, -11.802653722511598])
    assert drawn["noise_seed"].tolist() == [3921778151823383861, 11741871301283251143]


# --- nothing but (seed, epoch, step, row) matters


@pytest.mark.parametrize("cuts", [[0, 3, 6], [0, 1, 2, 3, 4, 5, 6], [0, 5, 6]])
@pytest.mark.parametrize("config", [ALL, Augment(contrast=0.3, brightness=0.1), Augment(erase=1.0), Augment(flip=0.5)])
def test_a_batch_cut_in_pieces_becomes_bitwise_the_same(config: Augment, cuts: list[int]) -> None:
    images, rows = pictures(6, 200), np.arange(10, 16)
    whole = augment(images, config, **AT, rows=rows)
    parts = [augment(images[a:b], config, **AT, rows=rows[a:b]) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, images)


def test_images_of_one_batch_are_changed_differently() -> None:
    images = pictures(1).expand(8, -1, -1, -1)
    out = augment(images, ALL, **AT, rows=np.arange(8))
    assert len({image.numpy().tobytes() for image in out}) == 8


def test_the_result_does_not_depend_on_global_generators_and_leaves_them_alone() -> None:
    images, rows = pictures(4), np.arange(4)
    torch.manual_seed(0)
    first = augment(images, ALL, **AT, rows=rows)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(augment(images, ALL, **AT, rows=rows), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_result_does_not_depend_on_autocast() -> None:
    images, rows = pictures(4), np.arange(4)
    plain = augment(images, ALL, **AT, rows=rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, ALL, **AT, rows=rows), plain)


# --- the whole


@pytest.mark.parametrize("config", [ALL, GEOMETRY, Augment(noise=1.0), Augment(flip=1.0), Augment(brightness=1.0)])
def test_shape_type_and_range_are_kept_and_the_input_is_not_changed(config: Augment) -> None:
    images = pictures(16)
    before = images.clone()
    out = augment(images, config, **AT, rows=np.arange(16))
    assert (out.shape, out.dtype, out.is_contiguous()) == (images.shape, torch.float32, True)
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(images, before)


def test_with_everything_off_the_images_come_back_themselves() -> None:
    images = pictures(2)
    assert augment(images, Augment(), **AT, rows=np.arange(2)) is images


def test_an_empty_batch_stays_empty() -> None:
    assert augment(pictures(0), ALL, **AT, rows=np.arange(0)).shape == (0, 1, 32, 32)


def test_flip_is_off_by_default() -> None:
    assert Augment().flip == 0


def test_seen_names_what_a_network_was_shown() -> None:
    assert seen(GEOMETRY) == {"rotate", "shift", "scale", "flip"}
    assert seen(Augment(flip=0.1, noise=0.1)) == {"flip", "noise"}
    assert seen(Augment()) == frozenset()


# --- geometry


def dot(x: int, y: int, size: int = 9) -> Tensor:
    """Black but for one white pixel in column x (from the left) and line y (from the top)."""
    image = torch.zeros(1, 1, size, size)
    image[0, 0, y, x] = 1
    return image


@pytest.mark.parametrize(
    ("change", "arrives"),
    [
        ({"flip": [True]}, (1, 3)),
        ({"angle": [np.pi / 2]}, (3, 1)),  # a quarter turn counter-clockwise takes the right to the top
        ({"right": [1 / 9]}, (8, 3)),
        ({"down": [2 / 9]}, (7, 5)),
        ({"flip": [True], "angle": [np.pi / 2]}, (3, 7)),  # mirrored first, then turned
        ({"angle": [np.pi / 2], "right": [2 / 9]}, (5, 1)),  # turned first, then moved
    ],
)
def test_directions(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], arrives: tuple[int, int]) -> None:
    out = apply(monkeypatch, dot(7, 3), GEOMETRY, **change)
    torch.testing.assert_close(out, dot(*arrives), atol=1e-5, rtol=0)


def test_zoom_above_one_enlarges(monkeypatch: pytest.MonkeyPatch) -> None:
    out = apply(monkeypatch, dot(5, 4), GEOMETRY, zoom=[3.0])  # one pixel off the centre goes three pixels off it
    assert out[0, 0, 4].tolist() == pytest.approx([0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1, 2 / 3], abs=1e-5)


def reference(image: np.ndarray, drawn: Drawn, row: int) -> np.ndarray:
    """The forward map from textbook matrices (x to the right, y upwards, origin in the centre), inverted by numpy."""
    flip, zoom, angle = drawn.flip[row], drawn.zoom[row], drawn.angle[row]
    right, down, side = drawn.right[row], drawn.down[row], len(image)
    middle = (side - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    move = np.array([[1, 0, right * side], [0, 1, -down * side], [0, 0, 1]])
    forward = move @ turn @ np.diag([zoom, zoom, 1]) @ np.diag([-1 if flip else 1, 1, 1])
    place = np.array([[0, 1, -middle], [-1, 0, middle], [0, 0, 1]])  # (line, column) to (x, y)
    matrix = np.linalg.inv(place) @ np.linalg.inv(forward) @ place
    return ndimage.affine_transform(image, matrix, order=1, mode="grid-constant", cval=0)


@pytest.mark.parametrize("size", [16, 33])
def test_geometry_equals_scipy(size: int) -> None:
    config, rows = Augment(rotate=180, shift=0.3, scale=0.5, flip=0.5), np.arange(12)
    images, drawn = pictures(12, size), draw(config, **AT, rows=rows)
    out = augment(images, config, **AT, rows=rows)
    for row in rows:
        expected = reference(images[row, 0].double().numpy(), drawn, row)
        np.testing.assert_allclose(out[row, 0], expected, atol=2e-5)
    assert drawn.flip.any()
    assert not drawn.flip.all()


def test_what_is_beyond_the_border_is_black(monkeypatch: pytest.MonkeyPatch) -> None:
    out = apply(monkeypatch, torch.ones(1, 1, 8, 8), GEOMETRY, right=[0.25])
    assert out[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_flip_alone_is_exact() -> None:
    images, rows = pictures(32), np.arange(32)
    out = augment(images, Augment(flip=0.5), **AT, rows=rows)
    flipped = draw(Augment(flip=0.5), **AT, rows=rows).flip
    assert 0 < flipped.sum() < 32
    for row in rows:
        assert torch.equal(out[row], images[row].flip(-1) if flipped[row] else images[row])


# --- grey levels


def test_gamma_is_a_power(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(2)
    out = apply(monkeypatch, images, Augment(gamma=0.5), gamma=[0.5, 2.0])
    torch.testing.assert_close(out, torch.stack([images[0] ** 0.5, images[1] ** 2]))


def test_contrast_is_about_the_mean_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images = 0.4 + 0.2 * pictures(2)
    images[1] += 0.1
    out = apply(monkeypatch, images, Augment(contrast=0.5), contrast=[0.5, 1.5])
    mean = images.mean((1, 2, 3), keepdim=True)
    factor = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1)
    torch.testing.assert_close(out, mean + (images - mean) * factor)
    torch.testing.assert_close(out.mean((1, 2, 3)), mean.flatten())


def test_brightness_is_added_and_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.tensor([0.0, 0.5, 0.9, 1.0]).view(1, 1, 2, 2)
    out = apply(monkeypatch, images, Augment(brightness=0.5), brightness=[0.2])
    torch.testing.assert_close(out.flatten(), torch.tensor([0.2, 0.7, 1.0, 1.0]))


def test_noise_has_the_drawn_deviation_and_differs_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.full((3, 1, 128, 128), 0.5)
    seeds = np.array([1, 2**64 - 1, 1], np.uint64)
    out = apply(monkeypatch, images, Augment(noise=0.1), sigma=[0.05, 0.1, 0.0], noise_seed=seeds) - 0.5
    assert out.std((1, 2, 3)).tolist() == pytest.approx([0.05, 0.1, 0.0], rel=0.03)
    assert out.mean((1, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=0.003)
    assert abs(np.corrcoef(out[0].flatten(), out[1].flatten())[0, 1]) < 0.05


def test_erasing_fills_the_box_with_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(2, 16)
    box = [[0.25, 0.5, 0.5, 0.75], [0, 0, 0, 0]]
    out = apply(monkeypatch, images, Augment(erase=1.0), box=box)
    expected = images.clone()
    expected[0, 0, 4:8, 8:12] = images[0].mean()
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[1], images[1])


def test_erasing_is_the_last_thing_that_happens() -> None:
    config = ALL.model_copy(update={"erase": 1.0})
    images, rows = pictures(8, 64), np.arange(8)
    whole = augment(images, config, **AT, rows=rows)
    without = augment(images, config.model_copy(update={"erase": 0.0}), **AT, rows=rows)
    for image, before in zip(whole, without, strict=True):
        lost = image[image != before]
        assert 0.015 < lost.numel() / image.numel() < 0.16
        assert len(lost.unique()) == 1
        assert lost[0].item() == pytest.approx(before.mean().item(), abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_what_the_cpu_does() -> None:
    config, rows, images = ALL.model_copy(update={"noise": 0.0}), np.arange(6), pictures(6, 64)
    there = augment(images.cuda(), config, **AT, rows=rows)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), augment(images, config, **AT, rows=rows), atol=1e-4, rtol=0)
    noisy = [augment(images.cuda(), Augment(noise=0.1), **AT, rows=rows) for _ in range(2)]
    assert torch.equal(*noisy)
