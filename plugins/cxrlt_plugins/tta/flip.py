"""The image and its mirror image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxrlt_cli.contracts import TestTimeAugmentation, View

if TYPE_CHECKING:
    from torch import Tensor


def build() -> TestTimeAugmentation:
    """The mean logit of the image and its mirror image.

    A mirrored chest has its heart on the right: only a network whose training saw flips can read it.
    """
    mirrored = View("flip", _mirrored, needs=frozenset({"flip"}))
    return TestTimeAugmentation((View("identity", _as_it_is), mirrored))


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _mirrored(images: Tensor) -> Tensor:
    """(B, 1, H, W) with left and right exchanged."""
    return images.flip(-1)
