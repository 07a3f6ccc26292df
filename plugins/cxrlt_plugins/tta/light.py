"""Small rotations."""

from __future__ import annotations

from cxrlt_cli.contracts import Merge, Space, TestTimeAugmentation
from cxrlt_plugins.tta.moves import Move, strategy, within


def build(*, angle: float = 5.0, space: Space = "logit", merge: Merge = "mean") -> TestTimeAugmentation:
    """The image, and turned a little either way: 3 views.

    Args:
        angle: degrees of either turn
        space: whether logits or posteriors are merged
        merge: how the views are merged
    """
    within("angle", angle, 0, 180)
    return strategy({"turn left": Move(degrees=angle), "turn right": Move(degrees=-angle)}, space, merge)
