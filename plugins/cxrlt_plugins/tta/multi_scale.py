"""The image at several scales."""

from __future__ import annotations

from cxrlt_cli.contracts import Merge, PluginFault, Space, TestTimeAugmentation
from cxrlt_plugins.tta.moves import Move, strategy, within


def build(
    *, factors: tuple[float, ...] = (0.9, 1.1), space: Space = "logit", merge: Merge = "mean"
) -> TestTimeAugmentation:
    """The image, and zoomed about its centre by each factor, within the same frame: 1 view more than factors.

    The frame keeps its size, because many networks accept no other, and because views of one size share batches.
    What a network sees is the same as with a larger or smaller input: a finding that spans more, or fewer, pixels.
    A factor above 1 cuts the borders off; one below 1 leaves a black margin.

    Args:
        factors: zooms, without 1, which is always there
        space: whether logits or posteriors are merged
        merge: how the views are merged
    """
    for factor in factors:
        within("factors", factor, 0.25, 4)
    if not factors or len({1.0, *factors}) <= len(factors):
        listed = ", ".join(f"{factor:g}" for factor in factors) or "empty"
        raise PluginFault(f"the option 'factors' is {listed}", cure="Give different factors, none of them 1.")
    return strategy({f"zoom {factor:g}": Move(zoom=factor) for factor in factors}, space, merge)
