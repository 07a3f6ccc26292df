"""Which part of an image speaks for a finding: Grad-CAM (Selvaraju et al., ICCV 2017).

The map before pooling is one forward pass; the head on the pooled map gives the logit; one gradient of it with respect
to the map, averaged over places, weighs the map's channels. What remains above 0 speaks for the finding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import Backbone, PluginFault
from cxrlt_cli.data.batches import Images, to_unit
from cxrlt_cli.engine.infer import Setting
from cxrlt_cli.errors import PluginError
from cxrlt_cli.events import Advanced, Emit, Finished, Started, silent
from cxrlt_cli.model import Classifier

#: Logits from the map may differ from those of the network by so much, relative to the largest.
_TOLERANCE = 1e-3
_STAGE = "heat maps"


def grad_cam(model: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """Heat maps of one class for each image.

    Args:
        model: in evaluation mode.
        images: (B, 1, S, S) intensities in [0, 1].
        targets: (B,) int64, the class of each image.

    Returns:
        (B, h, w) float32 in [0, 1], as large as the backbone's feature map; the strongest place of each image is 1,
        all are 0 where no place speaks for the class.

    Raises:
        PluginError: the backbone has no feature map, or its map and its pooled features do not belong together.
    """
    with torch.enable_grad():
        channels = _feature_map(model, images).detach().requires_grad_()
        logits = _head_of(model)(channels)
        (slopes,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), channels)
    _check(model, images, logits.detach())
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    heat = (weights * channels.detach()).sum(dim=1).clamp_min(0).float()
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _feature_map(model: Classifier, images: Tensor) -> Tensor:
    backbone = cast("Backbone", model.backbone)
    try:
        with torch.no_grad():
            return backbone.feature_map(model.normalise(images))
    except (PluginFault, AttributeError) as fault:
        what = fault.what if isinstance(fault, PluginFault) else str(fault)
        raise PluginError(f"there are no heat maps of this network: {what}", cure="Leave --heatmaps out.") from fault


def _head_of(model: Classifier) -> Callable[[Tensor], Tensor]:
    """From the map (B, D, h, w) to logits."""
    if getattr(model.head, "spatial", False):
        return cast("Callable[[Tensor], Tensor]", model.head)
    pool = getattr(model.backbone, "pool", None) or (lambda channels: channels.mean(dim=(2, 3)))
    return lambda channels: cast("Tensor", model.head(pool(channels)))


def _check(model: Classifier, images: Tensor, logits: Tensor) -> None:
    """The map must lead to the logits the network gives; another pooling would explain another network."""
    with torch.no_grad():
        own = model(images).float()
    worst = float((own - logits.float()).abs().max())
    if not worst <= _TOLERANCE * max(1.0, float(own.abs().max())):
        raise PluginError(
            f"there are no heat maps of this network: its logits are not those of its pooled feature map ({worst:.3g} "
            "apart)",
            cure="Leave --heatmaps out, or give the backbone a method pool(map) -> features.",
        )


def heat_maps(
    model: Classifier,
    images: Images,
    rows: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    setting: Setting,
    *,
    emit: Emit = silent,
) -> npt.NDArray[np.float32]:
    """``grad_cam`` of images of a prepared dataset, in batches and in full precision.

    Args:
        model: put in evaluation mode here.
        images: read from.
        rows: (n,) which images.
        targets: (n,) the class of each.
        setting: device, size and batch size.
        emit: told about progress.

    Returns:
        (n, h, w) in [0, 1].

    Raises:
        PluginError: as ``grad_cam``.
    """
    cast("nn.Module", model).eval()
    parts: list[npt.NDArray[np.float32]] = []
    emit(Started(_STAGE, len(rows)))
    for start in range(0, len(rows), setting.batch_size):
        chosen = slice(start, start + setting.batch_size)
        pixels = np.empty((len(rows[chosen]), images.size, images.size), np.uint8)
        images.read(rows[chosen], pixels)
        batch = to_unit(torch.from_numpy(pixels)[:, None], setting.device, setting.size)
        wanted = torch.from_numpy(targets[chosen]).to(setting.device)
        parts.append(grad_cam(model, batch, wanted).cpu().numpy())
        emit(Advanced(_STAGE, min(len(rows), start + setting.batch_size)))
    emit(Finished(_STAGE))
    return np.concatenate(parts) if parts else np.zeros((0, 1, 1), np.float32)
