"""The image and its mirror image."""

from __future__ import annotations

from cxrlt_cli.contracts import Merge, Space, TestTimeAugmentation
from cxrlt_plugins.tta.moves import Move, strategy


def build(*, space: Space = "logit", merge: Merge = "mean") -> TestTimeAugmentation:
    """The image and its mirror image: 2 views.

    A mirrored chest has its heart on the right: only a network whose training saw flips can read it.

    Args:
        space: whether logits or posteriors are merged
        merge: how the views are merged
    """
    return strategy({"flip": Move(flip=True)}, space, merge)
