"""Geometry and grey levels, one at a time and together."""

from __future__ import annotations

from dataclasses import replace

from cxrlt_cli.contracts import Merge, Space, TestTimeAugmentation
from cxrlt_plugins.tta.medium import single_moves
from cxrlt_plugins.tta.moves import Move, strategy, within


def build(
    *,
    angle: float = 5.0,
    scale: float = 0.05,
    shift: float = 0.03,
    brightness: float = 0.05,
    contrast: float = 0.1,
    gamma: float = 0.1,
    flip: bool = False,
    space: Space = "logit",
    merge: Merge = "mean",
) -> TestTimeAugmentation:
    """The views of ``medium``, moved up and down, other grey levels, and four composed views: 19 views.

    A composed view turns, zooms and moves at once, in one interpolation. The four are the balanced half of the eight
    combinations of directions.

    Args:
        angle: degrees of either turn
        scale: zooms are 1 + scale and 1 - scale
        shift: share of the side by which the image moves in each of four directions
        brightness: added to, and taken from, every intensity in [0, 1]
        contrast: distances from the mean of the image are multiplied by 1 + contrast and 1 - contrast
        gamma: powers are 1 - gamma and 1 / (1 - gamma)
        flip: also the mirror image
        space: whether logits or posteriors are merged
        merge: how the views are merged
    """
    moves = single_moves(angle, scale, shift)
    moves |= {"move down": Move(down=shift), "move up": Move(down=-shift)}
    moves |= _grey_levels(brightness, contrast, gamma)
    moves |= _composed(moves)
    return strategy({**moves, **({"flip": Move(flip=True)} if flip else {})}, space, merge)


def _grey_levels(brightness: float, contrast: float, gamma: float) -> dict[str, Move]:
    for option, value in (("brightness", brightness), ("contrast", contrast), ("gamma", gamma)):
        within(option, value, 0, 1)
    return {
        "brighter": Move(brightness=brightness),
        "darker": Move(brightness=-brightness),
        "more contrast": Move(contrast=1 + contrast),
        "less contrast": Move(contrast=1 - contrast),
        "lighter greys": Move(gamma=1 - gamma),
        "deeper greys": Move(gamma=1 / (1 - gamma)),
    }


def _composed(single: dict[str, Move]) -> dict[str, Move]:
    made = {}
    for turn, zoom, side in (
        ("turn left", "zoom in", "move right"),
        ("turn left", "zoom out", "move left"),
        ("turn right", "zoom in", "move left"),
        ("turn right", "zoom out", "move right"),
    ):
        made[f"{turn}, {zoom}, {side}"] = replace(single[turn], zoom=single[zoom].zoom, right=single[side].right)
    return made
