"""Four corners and the centre."""

from __future__ import annotations

from cxrlt_cli.contracts import Merge, Space, TestTimeAugmentation
from cxrlt_plugins.tta.moves import Move, strategy, within


def build(*, share: float = 0.9, space: Space = "logit", merge: Merge = "mean") -> TestTimeAugmentation:
    """The image, and its four corners and its centre, each enlarged to the whole frame: 6 views.

    A corner loses the opposite borders of the image, and what may lie there: the cut is small unless told otherwise.

    Args:
        share: side of a crop as a share of the side of the image
        space: whether logits or posteriors are merged
        merge: how the views are merged
    """
    within("share", share, 0.25, 1)
    zoom = 1 / share
    beyond = (zoom - 1) / 2  # what the enlarged image extends beyond each border
    corners = {
        f"{vertical} {side}": Move(zoom=zoom, right=right * beyond, down=down * beyond)
        for vertical, down in (("top", 1), ("bottom", -1))
        for side, right in (("left", 1), ("right", -1))
    }
    return strategy({**corners, "centre": Move(zoom=zoom)}, space, merge)
