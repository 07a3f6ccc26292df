"""No test-time augmentation."""

from __future__ import annotations

from cxrlt_cli.contracts import TestTimeAugmentation
from cxrlt_plugins.tta.moves import strategy


def build() -> TestTimeAugmentation:
    """The image as it is, once."""
    return strategy({}, "logit", "mean")
