"""No test-time augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxrlt_cli.contracts import TestTimeAugmentation, View

if TYPE_CHECKING:
    from torch import Tensor


def build() -> TestTimeAugmentation:
    """The image as it is, once."""
    return TestTimeAugmentation((View("identity", _as_it_is),))


def _as_it_is(images: Tensor) -> Tensor:
    return images
