"""Grad-CAM against its definition and against pytorch-grad-cam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import ClassStats, PluginFault, Preprocess
from cxrlt_cli.data.batches import to_unit
from cxrlt_cli.engine.gradcam import grad_cam, heat_maps
from cxrlt_cli.engine.infer import Setting
from cxrlt_cli.errors import PluginError
from cxrlt_cli.model import Classifier
from cxrlt_cli.registry import build

STATS = ClassStats(("a", "b", "c"), (5, 5, 5), (5, 5, 5))


class Backbone(nn.Module):
    """One convolution; pooled by the mean, or by something else."""

    width = 4
    preprocess = Preprocess((0.5,), (0.5,))

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.convolution, self.power = nn.Conv2d(1, 4, 3, stride=4), power

    def feature_map(self, images: Tensor) -> Tensor:
        return self.convolution(images).tanh()

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_map(images).mean(dim=(2, 3)) * self.power


def network(backbone: nn.Module, head: nn.Module | None = None) -> Classifier:
    torch.manual_seed(1)
    return Classifier(backbone, head or nn.Linear(4, 3), 1).eval()


def timm_network(model: str, head: dict[str, Any] | None = None) -> Classifier:
    torch.manual_seed(0)
    backbone = build("backbones", {"name": "timm", "model": model, "pretrained": False}, 1, 64)
    made = Classifier(backbone, build("heads", head or {"name": "linear"}, backbone.width, STATS), 1)
    with torch.no_grad():
        for name, parameter in made.head.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(std=1.0)
            if name == "weight" and parameter.ndim == 2:
                parameter[1] = -parameter[0]  # what speaks against one class speaks for the other
    return made.eval()


def test_it_is_what_the_paper_defines() -> None:
    model, images, targets = network(Backbone()), torch.rand(3, 1, 16, 16), torch.tensor([0, 2, 1])
    channels = model.backbone.feature_map(model.normalise(images)).detach()
    # of a mean and a line, the slope of the logit is the line's weight over the number of places, everywhere
    expected = torch.einsum("bd,bdhw->bhw", model.head.weight[targets].detach(), channels).clamp_min(0)
    peaks = expected.amax(dim=(1, 2), keepdim=True)
    expected = torch.where(peaks > 0, expected / peaks.clamp_min(1e-30), 0)
    torch.testing.assert_close(grad_cam(model, images, targets), expected, atol=1e-5, rtol=1e-4)


def test_images_of_a_batch_do_not_meet() -> None:
    model, images, targets = timm_network("test_resnet"), torch.rand(3, 1, 64, 64), torch.tensor([0, 2, 1])
    together = grad_cam(model, images, targets)
    alone = torch.cat([grad_cam(model, images[k : k + 1], targets[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("head", ["csra", "ml-decoder"])
def test_spatial_heads_have_heat_maps(head: str) -> None:
    heat = grad_cam(timm_network("test_resnet", {"name": head}), torch.rand(2, 1, 64, 64), torch.tensor([0, 1]))
    assert heat.shape[1:] == (2, 2)
    assert ((heat >= 0) & (heat <= 1)).all()


def test_a_network_without_a_map_is_refused() -> None:
    class Tokens(Backbone):
        def feature_map(self, images: Tensor) -> Tensor:
            raise PluginFault("features are tokens")

    with pytest.raises(PluginError, match="no heat maps of this network: features are tokens"):
        grad_cam(network(Tokens()), torch.rand(1, 1, 16, 16), torch.tensor([0]))


def test_a_map_that_leads_to_other_logits_is_refused() -> None:
    with pytest.raises(PluginError, match="not those of its pooled feature map"):
        grad_cam(network(Backbone(power=2)), torch.rand(1, 1, 16, 16), torch.tensor([0]))


def test_batches_change_nothing() -> None:
    class Source:
        size = 16
        pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16), dtype=np.uint8)

        def read(self, rows: np.ndarray, out: np.ndarray) -> None:
            out[:] = self.pixels[rows]

    model, rows, targets = network(Backbone()), np.array([6, 0, 3, 2, 5]), np.array([0, 1, 2, 0, 1])
    setting = Setting(torch.device("cpu"), 16, 2)
    found = heat_maps(model, Source(), rows, targets, setting)
    images = to_unit(torch.from_numpy(Source.pixels[rows])[:, None], "cpu")
    np.testing.assert_allclose(found, grad_cam(model, images, torch.from_numpy(targets)).numpy(), atol=1e-6)
    assert heat_maps(model, Source(), rows[:0], targets[:0], setting).shape[0] == 0


#: Networks of different kinds, and the module whose output is their feature map.
NETWORKS = {
    "test_resnet": lambda network: network.layer4,
    "resnet10t": lambda network: network.layer4,
    "convnext_atto": lambda network: network.norm_pre,
    "tf_efficientnet_lite0": lambda network: network.bn2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_it_is_pytorch_grad_cams(name: str) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = timm_network(name)
    images, targets = torch.rand(4, 1, 96, 96).repeat_interleave(3, dim=0), torch.arange(3).repeat(4)
    own = grad_cam(model, images, targets)
    large = nn.functional.interpolate(own[:, None], (96, 96), mode="bilinear", align_corners=False)[:, 0].numpy()
    with GradCAM(model=model, target_layers=[NETWORKS[name](model.backbone.network)]) as theirs:
        expected = theirs(images.requires_grad_(), [ClassifierOutputTarget(int(target)) for target in targets])
    speaks = expected.max(axis=(1, 2)) > 0  # a random network may know nothing that speaks for a class
    assert speaks.sum() >= 4
    assert (large[~speaks] == 0).all()
    correlations = [np.corrcoef(mine.ravel(), other.ravel())[0, 1] for mine, other in zip(large, expected, strict=True)]
    assert min(np.array(correlations)[speaks]) > 0.999
