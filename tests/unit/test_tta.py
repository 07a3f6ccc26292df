"""The built-in strategies, against a bilinear interpolation written pixel by pixel and formulas written out."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cxrlt_cli import registry
from cxrlt_cli.contracts import TestTimeAugmentation
from cxrlt_cli.data.augment import augment
from cxrlt_cli.errors import PluginError
from cxrlt_cli.recipe.schema import Augment
from cxrlt_plugins.tta.moves import Move

BUILT_IN = ("none", "flip", "light", "medium", "heavy", "multi-scale", "five-crop")

Pixels = npt.NDArray[np.float64]


def build(name: str, **options: Any) -> TestTimeAugmentation:
    return registry.build("tta", {"name": name, **options})


def moves(name: str, **options: Any) -> dict[str, Move]:
    found = {view.name: view.apply for view in build(name, **options).views}
    assert all(isinstance(apply, Move) for apply in found.values())
    return found  # type: ignore[return-value]  # just checked


def pictures(count: int = 3, height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(height))


def seen(move: Move, image: Pixels) -> Pixels:
    return move(torch.from_numpy(image)[None, None])[0, 0].numpy()


def by_hand(image: Pixels, move: Move) -> Pixels:
    """Where every pixel comes from, by plane geometry in pixels, and the mean of its four neighbours by distance."""
    height, width = image.shape
    out, angle = np.zeros_like(image), math.radians(move.degrees)
    for row in range(height):
        for column in range(width):
            # from the centre, x to the right and y upwards; undo the shift, the turn, the zoom, the flip
            x = column + 0.5 - width / 2 - move.right * width
            y = height / 2 - (row + 0.5) + move.down * height
            x, y = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
            x, y = x / move.zoom * (-1 if move.flip else 1), y / move.zoom
            out[row, column] = between(image, height / 2 - y - 0.5, x + width / 2 - 0.5)
    return out


def between(image: Pixels, row: float, column: float) -> float:
    """The image at a point between pixel centres; black outside."""
    top, left, value = math.floor(row), math.floor(column), 0.0
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < image.shape[0] and 0 <= c < image.shape[1]:
                value += image[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return value


# -- geometry ------------------------------------------------------------------------------------------------------

GEOMETRIES = [
    Move(degrees=5),
    Move(degrees=-33),
    Move(zoom=1.3),
    Move(zoom=0.7),
    Move(right=0.1),
    Move(down=-0.23),
    Move(degrees=12, zoom=1.1, right=0.05, down=-0.1),
    Move(degrees=-8, zoom=0.9, right=-0.05, down=0.07, flip=True),
]


@pytest.mark.parametrize("shape", [(11, 11), (8, 14), (13, 9)])
@pytest.mark.parametrize("move", GEOMETRIES, ids=str)
def test_a_move_is_one_bilinear_interpolation(move: Move, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).random(shape)
    np.testing.assert_allclose(seen(move, image), by_hand(image, move), atol=1e-12)


@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_are_exact(size: int) -> None:
    image = np.random.default_rng(2).random((size, size))
    for quarters in (1, 2, 3):
        np.testing.assert_allclose(seen(Move(degrees=90 * quarters), image), np.rot90(image, quarters), atol=1e-12)
        clockwise = seen(Move(degrees=-90 * quarters), image)
        np.testing.assert_allclose(clockwise, np.rot90(image, -quarters), atol=1e-12)


def test_whole_pixels_move_exactly_and_leave_black_behind() -> None:
    image = np.random.default_rng(3).random((8, 8))
    moved = seen(Move(right=0.25, down=-0.125), image)
    np.testing.assert_allclose(moved[:-1, 2:], image[1:, :-2], atol=1e-12)
    assert not moved[-1].any()
    assert not moved[:, :2].any()


def test_a_flip_alone_is_exact() -> None:
    images = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 1, 3, 4)
    mirrored = Move(flip=True)(images)
    assert torch.equal(mirrored[0, 0, 0], torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert torch.equal(mirrored.flip(3), images)


def test_no_change_is_the_image_itself() -> None:
    images = pictures()
    assert Move()(images) is images
    assert Move().needs == frozenset()


def test_a_composed_move_is_sharper_than_its_parts_one_after_the_other() -> None:
    image = np.random.default_rng(6).random((40, 40))
    whole = Move(degrees=10, zoom=1.05, right=0.03)
    at_once = seen(whole, image)
    in_turn = seen(Move(right=0.03), seen(Move(degrees=10), seen(Move(zoom=1.05), image)))
    inside = slice(10, 30)
    np.testing.assert_allclose(at_once, by_hand(image, whole), atol=1e-12)
    assert at_once[inside, inside].std() > 1.2 * in_turn[inside, inside].std()  # every interpolation blurs


def test_the_directions_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parameters, given to training's augmentation, make the same picture."""
    from dataclasses import replace

    from cxrlt_cli.data import augment as module

    move = Move(degrees=12, zoom=1.1, right=0.05, down=-0.1, flip=True, gamma=0.8, contrast=1.2, brightness=0.05)
    images, config = pictures(2), Augment(rotate=20, shift=0.1, scale=0.2, flip=0.5, gamma=0.3, contrast=0.3)
    drawn = module.draw(config, seed=0, epoch=0, step=0, rows=np.arange(2))
    fixed = {"zoom": move.zoom, "angle": math.radians(move.degrees), "right": move.right, "down": move.down}
    fixed |= {"gamma": move.gamma, "contrast": move.contrast, "brightness": move.brightness}
    values: dict[str, Any] = {name: np.full(2, value) for name, value in fixed.items()}
    changed = replace(drawn, **values, flip=np.ones(2, bool))
    monkeypatch.setattr(module, "draw", lambda *_, **__: changed)
    trained = augment(images, config, seed=0, epoch=0, step=0, rows=np.arange(2))
    torch.testing.assert_close(move(images), trained, atol=1e-5, rtol=0)


# -- grey levels ---------------------------------------------------------------------------------------------------


def test_gamma_contrast_and_brightness_by_formula() -> None:
    image = np.random.default_rng(4).random((9, 9))
    np.testing.assert_allclose(seen(Move(gamma=0.9), image), image**0.9, atol=1e-12)
    np.testing.assert_allclose(seen(Move(brightness=-0.1), image), np.maximum(image - 0.1, 0), atol=1e-12)
    stretched = np.clip(image.mean() + 1.5 * (image - image.mean()), 0, 1)
    np.testing.assert_allclose(seen(Move(contrast=1.5), image), stretched, atol=1e-12)
    dark = image**1.4
    together = np.clip(dark.mean() + 0.8 * (dark - dark.mean()) + 0.05, 0, 1)
    np.testing.assert_allclose(seen(Move(gamma=1.4, contrast=0.8, brightness=0.05), image), together, atol=1e-12)


@pytest.mark.parametrize("move", [Move(brightness=1), Move(contrast=9), Move(gamma=0.01), Move(brightness=-1)])
def test_intensities_stay_between_black_and_white(move: Move) -> None:
    for images in (pictures(), torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)):
        out = move(images)
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.isfinite(out).all()


# -- the strategies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_first_view_is_the_image_itself_and_needs_nothing(name: str) -> None:
    images, first = pictures(), build(name).views[0]
    assert torch.equal(first.apply(images), images)
    assert first.needs == frozenset()


@pytest.mark.parametrize("name", BUILT_IN)
def test_views_leave_their_input_alone_and_do_not_depend_on_the_batch(name: str) -> None:
    images = pictures(4, 16, 16)
    kept = images.clone()
    for view in build(name).views:
        together = view.apply(images)
        for row in range(4):
            assert torch.equal(view.apply(images[row : row + 1]), together[row : row + 1]), view.name
        assert together.dtype == images.dtype
        assert together.shape == images.shape
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", BUILT_IN)
def test_views_differ_from_each_other(name: str) -> None:
    outputs = [view.apply(pictures(1, 32, 32)) for view in build(name).views]
    for number, output in enumerate(outputs):
        assert not any(torch.allclose(output, other, atol=1e-3) for other in outputs[:number])


@pytest.mark.parametrize(
    ("name", "count", "needs"),
    [
        ("none", 1, set()),
        ("flip", 2, {"flip"}),
        ("light", 3, {"rotate"}),
        ("medium", 7, {"rotate", "scale", "shift"}),
        ("heavy", 19, {"rotate", "scale", "shift", "brightness", "contrast", "gamma"}),
        ("multi-scale", 3, {"scale"}),
        ("five-crop", 6, {"scale", "shift"}),
    ],
)
def test_costs_and_needs(name: str, count: int, needs: set[str]) -> None:
    strategy = build(name)
    assert len(strategy.views) == count
    assert set().union(*(view.needs for view in strategy.views)) == needs
    assert needs <= set(Augment.model_fields)
    assert (strategy.space, strategy.merge) == ("logit", "mean")


def test_each_view_needs_what_it_does() -> None:
    by_name = {view.name: set(view.needs) for view in build("heavy", flip=True).views}
    assert by_name["turn left"] == {"rotate"}
    assert by_name["move up"] == {"shift"}
    assert by_name["zoom out"] == {"scale"}
    assert by_name["darker"] == {"brightness"}
    assert by_name["less contrast"] == {"contrast"}
    assert by_name["deeper greys"] == {"gamma"}
    assert by_name["flip"] == {"flip"}
    assert by_name["turn left, zoom in, move right"] == {"rotate", "scale", "shift"}


def test_options_are_the_sizes() -> None:
    assert moves("light", angle=3)["turn left"] == Move(degrees=3)
    medium = moves("medium", angle=2, scale=0.2, shift=0.1)
    assert list(medium.values()) == [
        *(Move(), Move(degrees=2), Move(degrees=-2), Move(zoom=1.2), Move(zoom=0.8)),
        *(Move(right=0.1), Move(right=-0.1)),
    ]
    heavy = moves("heavy", brightness=0.2, contrast=0.3, gamma=0.5, shift=0.1)
    assert (heavy["brighter"], heavy["darker"]) == (Move(brightness=0.2), Move(brightness=-0.2))
    assert (heavy["more contrast"], heavy["less contrast"]) == (Move(contrast=1.3), Move(contrast=0.7))
    assert (heavy["lighter greys"], heavy["deeper greys"]) == (Move(gamma=0.5), Move(gamma=2))
    assert (heavy["move down"], heavy["move up"]) == (Move(down=0.1), Move(down=-0.1))
    assert moves("multi-scale", factors=[0.8, 1.25, 1.5])["zoom 1.25"] == Move(zoom=1.25)


def test_names_say_what_is_seen() -> None:
    """A bright spot at the top: turning left takes it to the left, moving up out of sight, and so on."""
    image = np.zeros((16, 16))
    image[2:4, 7:9] = 1
    heavy = moves("heavy", angle=30, shift=0.2, scale=0.3)

    def centre(name: str) -> tuple[float, float]:
        out = seen(heavy[name], image)
        rows, columns = np.indices(out.shape)
        return float((rows * out).sum() / out.sum()), float((columns * out).sum() / out.sum())

    top, middle = centre("identity")
    assert centre("turn left")[1] < middle - 1 < middle + 1 < centre("turn right")[1]
    assert centre("move right")[1] > middle + 1
    assert centre("move left")[1] < middle - 1
    assert centre("move down")[0] > top + 1
    assert centre("zoom in")[0] < top - 0.5
    assert centre("zoom out")[0] > top + 0.5


def test_the_composed_views_are_balanced() -> None:
    composed = [move for name, move in moves("heavy").items() if name.count(",") == 2]
    signs = np.array([[np.sign(m.degrees), np.sign(m.zoom - 1), np.sign(m.right)] for m in composed])
    assert signs.shape == (4, 3)
    np.testing.assert_array_equal(signs.sum(0), 0)
    np.testing.assert_array_equal(signs.T @ signs, 4 * np.eye(3))


def test_five_crops_are_the_corners_and_the_centre_enlarged() -> None:
    """With half the side, pixel (r, c) of a crop of 8 shows the point (r / 2 - 1/4, c / 2 - 1/4) of its corner."""
    image = np.random.default_rng(5).random((8, 8))
    crops = moves("five-crop", share=0.5)
    for name, top, left in (
        ("top left", 0, 0),
        ("top right", 0, 4),
        ("bottom left", 4, 0),
        ("bottom right", 4, 4),
        ("centre", 2, 2),
    ):
        expected = [[between(image, top + r / 2 - 0.25, left + c / 2 - 0.25) for c in range(8)] for r in range(8)]
        np.testing.assert_allclose(seen(crops[name], image), expected, atol=1e-12, err_msg=name)


def test_strategies_share_equal_views() -> None:
    medium, heavy = set(moves("medium").values()), set(moves("heavy").values())
    assert medium < heavy
    assert set(moves("light").values()) < medium
    assert pickle.loads(pickle.dumps(Move(zoom=2))) == Move(zoom=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "light", "angle": 0}, "'angle' is 0"),
        ({"name": "light", "angle": 180}, "'angle' is 180"),
        ({"name": "medium", "scale": 1}, "'scale' is 1"),
        ({"name": "medium", "shift": -0.1}, "'shift' is -0.1"),
        ({"name": "heavy", "brightness": 0}, "'brightness' is 0"),
        ({"name": "heavy", "gamma": 1}, "'gamma' is 1"),
        ({"name": "heavy", "contrast": 1.5}, "'contrast' is 1.5"),
        ({"name": "multi-scale", "factors": [1.1, 1]}, "'factors' is 1.1, 1"),
        ({"name": "multi-scale", "factors": [1.1, 1.1]}, "'factors' is 1.1, 1.1"),
        ({"name": "multi-scale", "factors": [9]}, "'factors' is 9"),
        ({"name": "multi-scale", "factors": []}, "'factors' is empty"),
        ({"name": "five-crop", "share": 1}, "'share' is 1"),
        ({"name": "flip", "merge": "geometric"}, "geometric mean is one of posteriors"),
        ({"name": "flip", "merge": "sum"}, "merge"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_cure(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        registry.build("tta", options)
    assert "merge" in said or caught.value.cure


def test_every_strategy_merges_as_told() -> None:
    for name in BUILT_IN[1:]:
        strategy = build(name, space="posterior", merge="geometric")
        assert (strategy.space, strategy.merge) == ("posterior", "geometric")
