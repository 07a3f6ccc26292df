"""The classifier: backbone and head behind one call, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cxrlt_cli.artifacts import ModelCard, read_card, replacing
from cxrlt_cli.contracts import Backbone, ClassStats
from cxrlt_cli.errors import RunError
from cxrlt_cli.registry import build

if TYPE_CHECKING:
    from cxrlt_cli.recipe.schema import Model


class Classifier(nn.Module):
    """Intensities to logits.

    Args:
        backbone: features of preprocessed images.
        head: logits of features.
        in_chans: channels of the backbone; the grey image is repeated.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, in_chans: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.in_chans = in_chans
        preprocess = cast("Backbone", backbone).preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) intensities in [0, 1] -> (B, in_chans, S, S), preprocessed."""
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        return (images.expand(-1, self.in_chans, -1, -1) - mean) / std

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) intensities in [0, 1] -> logits (B, C)."""
        images = self.normalise(images)
        spatial = getattr(self.head, "spatial", False)
        features = cast("Backbone", self.backbone).feature_map(images) if spatial else self.backbone(images)
        logits: Tensor = self.head(features)
        return logits


def build_classifier(config: Model, stats: ClassStats, image_size: int, *, pretrained: bool = True) -> Classifier:
    """Build the network of a recipe.

    Args:
        config: the ``model`` section.
        stats: label counts of the training split; they give C.
        image_size: side of the images in pixels.
        pretrained: false builds the architecture only, for weights that are loaded next.

    Raises:
        PluginError: a plugin is missing or refuses its options.
    """
    override = {} if pretrained else {"pretrained": False}
    backbone = build("backbones", config.backbone, config.in_chans, image_size, **override)
    head = build("heads", config.head, cast("Backbone", backbone).width, stats)
    return Classifier(cast("nn.Module", backbone), cast("nn.Module", head), config.in_chans)


@torch.no_grad()
def set_bias(head: nn.Module, logits: Tensor) -> bool:
    """Set the head's ``bias`` (C,) so that it answers ``logits`` before it has learned anything.

    Returns:
        Whether the head has such a parameter.
    """
    bias = getattr(head, "bias", None)
    if not isinstance(bias, nn.Parameter) or bias.shape != logits.shape:
        return False
    bias.copy_(logits)
    return True


def save_model(path: Path, weights: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write ``model.safetensors``, whole or not at all.

    Args:
        path: file to write.
        weights: ``backbone.*`` and ``head.*`` of a ``Classifier``, and ``link.*``.
        card: stored in the metadata.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata=card.metadata())


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[Classifier, ModelCard]:
    """Build the classifier of a ``model.safetensors`` and load its weights, in evaluation mode.

    Raises:
        RunError: the file is missing, damaged, or does not fit the model it names.
        PluginError: its backbone or head plugin is not installed.
    """
    card = read_card(path)
    model = build_from_card(card)
    weights = read_weights(path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        raise RunError(
            f"the weights do not fit the model the file names: {what}",
            where=str(path),
            cure="The file is damaged, or a plugin changed since it was written.",
        ) from error
    return model.to(device).eval(), card


def read_weights(path: Path) -> dict[str, Tensor]:
    """The network's own tensors of a ``model.safetensors``, without the link.

    Raises:
        RunError: the file cannot be read.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), cure="The file is damaged; train again.") from error
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("link.")}


def build_from_card(card: ModelCard) -> Classifier:
    """The architecture a model card names, with random weights."""
    options: dict[str, Any] = {**card.backbone, "pretrained": False}
    backbone = build("backbones", options, card.in_chans, card.image_size)
    head = build("heads", card.head, cast("Backbone", backbone).width, card.stats)
    return Classifier(cast("nn.Module", backbone), cast("nn.Module", head), card.in_chans)
