"""Small rotations, zooms and shifts, one at a time."""

from __future__ import annotations

from cxrlt_cli.contracts import Merge, Space, TestTimeAugmentation
from cxrlt_plugins.tta.moves import Move, strategy, within


def build(
    *, angle: float = 5.0, scale: float = 0.05, shift: float = 0.03, space: Space = "logit", merge: Merge = "mean"
) -> TestTimeAugmentation:
    """The image, and turned, zoomed and moved sideways a little either way: 7 views.

    Args:
        angle: degrees of either turn
        scale: zooms are 1 + scale and 1 - scale
        shift: share of the side by which the image moves to the right and to the left
        space: whether logits or posteriors are merged
        merge: how the views are merged
    """
    return strategy(single_moves(angle, scale, shift), space, merge)


def single_moves(angle: float, scale: float, shift: float) -> dict[str, Move]:
    """The six views besides the image itself.

    Raises:
        PluginFault: a size makes no sense.
    """
    within("angle", angle, 0, 180)
    within("scale", scale, 0, 1)
    within("shift", shift, 0, 0.5)
    return {
        "turn left": Move(degrees=angle),
        "turn right": Move(degrees=-angle),
        "zoom in": Move(zoom=1 + scale),
        "zoom out": Move(zoom=1 - scale),
        "move right": Move(right=shift),
        "move left": Move(right=-shift),
    }
