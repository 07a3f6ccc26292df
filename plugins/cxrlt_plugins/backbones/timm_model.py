"""Every image network of timm, by name."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from torch import Tensor, nn

from cxrlt_cli.contracts import PluginFault, Preprocess

if TYPE_CHECKING:
    from collections.abc import Iterable


_BIASES = "attention_biases"


class TimmBackbone(nn.Module):
    """A timm network without its classifier.

    Args:
        network: built with ``num_classes=0``.
        in_chans: input channels.

    Attributes:
        width: D, the number of pooled features.
        preprocess: mean and standard deviation the weights were trained with; for one channel, their averages.
        depth: number of layers that ``layer_of`` tells apart.
    """

    def __init__(self, network: Any, in_chans: int) -> None:
        super().__init__()
        self.network = network
        self.width = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.preprocess = _preprocess(network.pretrained_cfg, in_chans)
        self._layers = _layers(network)
        self.depth = max(self._layers.values()) + 1

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> pooled features (B, D)."""
        features: Tensor = self.network(images)
        return features

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> feature map (B, D, h, w).

        Raises:
            PluginFault: the network's features are not a map of D channels.
        """
        features: Tensor = self.network.forward_features(images)
        if features.ndim == 4 and features.shape[-1] == self.width != features.shape[1]:
            features = features.permute(0, 3, 1, 2)
        if features.ndim != 4 or features.shape[1] != self.width:
            raise PluginFault(
                f"this network's features have shape {tuple(features.shape)}, not (B, {self.width}, h, w)",
                cure="Use a head that works on pooled features, such as linear or cosine.",
            )
        return features

    def pool(self, channels: Tensor) -> Tensor:
        """A map (B, D, h, w) as ``feature_map`` gives it -> pooled features (B, D), as ``forward`` gives them."""
        if str(getattr(self.network, "output_fmt", "")).endswith("NHWC"):
            channels = channels.permute(0, 2, 3, 1)
        features: Tensor = self.network.forward_head(channels)
        return features

    def layer_of(self, name: str) -> int:
        """Layer of a parameter named as in ``named_parameters()`` of this module; 0 is nearest the image."""
        return self._layers[name]

    def no_weight_decay(self) -> frozenset[str]:
        """Parameters the network's authors exempt from weight decay, such as position embeddings."""
        names = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()
        return frozenset(f"network.{name}" for name in names)


def build(
    in_chans: int,
    image_size: int,
    *,
    model: str,
    pretrained: bool | str = True,
    drop_path: float = 0.0,
    dropout: float = 0.0,
) -> TimmBackbone:
    """A network of timm by name, such as ``convnext_large.fb_in22k_ft_in1k`` or ``resnet50``.

    Args:
        in_chans: 1 or 3; weights of three channels are adapted to one.
        image_size: side of the images in pixels, for networks that are built for one size.
        model: timm's name, with the tag of the weights after a full stop.
        pretrained: true (downloaded from the Hugging Face hub, safetensors only), false, or the path of a safetensors
            file with timm's parameter names, or of the model.safetensors of a cxrlt run.
        drop_path: stochastic depth (arXiv 1603.09382), largest rate, in [0, 1).
        dropout: share of pooled features dropped, where the network has such a layer.

    Raises:
        PluginFault: there is no such model, or its weights cannot be had.
    """
    import timm

    if not timm.is_model(model):
        raise PluginFault(f"timm has no model {model!r}", cure=_suggest(model, timm.list_models()))
    options: dict[str, Any] = {"num_classes": 0, "in_chans": in_chans}
    options |= {key: value for key, value in (("drop_path_rate", drop_path), ("drop_rate", dropout)) if value}
    config = timm.get_pretrained_cfg(model)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    path = None
    if pretrained:
        path = _existing(pretrained) if isinstance(pretrained, str) else _download(model)
    return TimmBackbone(_create(model, options, path), in_chans)


#: What the conformance kit builds it with.
build.example = {"model": "test_resnet", "pretrained": False}  # type: ignore[attr-defined]


def _create(model: str, options: dict[str, Any], weights: Path | None) -> nn.Module:
    import timm

    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of one-channel weights that fit as they are
    tensors = {} if weights is None else _read(weights)
    try:
        if any(name.endswith(_BIASES) for name in tensors):
            tensors = _resize_biases(tensors, timm.create_model(model, **options).state_dict())
        network: nn.Module = timm.create_model(
            model,
            pretrained=weights is not None,
            pretrained_cfg_overlay={"state_dict": dict(tensors)} if weights is not None else None,
            **options,
        )
    except (TypeError, RuntimeError) as error:
        raise PluginFault(
            " ".join(str(error).split())[:300],
            where=f"timm model {model}" + (f" with the weights {weights}" if weights else ""),
            cure="Check the options, and that the weights are of this model at this image size.",
        ) from error
    if weights is not None:
        _all_loaded(network, tensors, model, weights)
    return network


def _resize_biases(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # EfficientFormerV2 keeps one bias per (|dy|, |dx|) on its grid; timm does not adapt them to another image size.
    from torch.nn.functional import interpolate

    resized = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(_BIASES) and name in expected and expected[name].shape != tensor.shape:
            old, new = (math.isqrt(t.shape[-1]) for t in (tensor, expected[name]))
            grid = tensor.float().reshape(1, -1, old, old)
            grid = interpolate(grid, size=(new, new), mode="bilinear", align_corners=True)
            resized[name] = grid.reshape(-1, new * new).to(tensor.dtype)
    return resized


def _all_loaded(network: nn.Module, tensors: Mapping[str, Tensor], model: str, weights: Path) -> None:
    # timm ignores missing names when the classifier is cut off, and would train from random weights unnoticed.
    expected = network.state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    if missing:
        raise PluginFault(
            f"lacks {len(missing)} of the {len(expected)} tensors of {model}, such as {missing[0]!r}",
            where=str(weights),
            cure="Give the safetensors file of this very model, with timm's parameter names.",
        )


def _read(weights: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise PluginFault(
            f"is not a readable safetensors file: {error}",
            where=str(weights),
            cure="Convert other formats with safetensors.torch.save_file; pickled files are never read.",
        ) from error
    own = "backbone.network."
    if any(name.startswith(own) for name in tensors):
        return {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
    return tensors


def _existing(path: str) -> Path:
    weights = Path(path).expanduser()
    if not weights.is_file():
        raise PluginFault(
            "there is no such weights file",
            where=path,
            cure="Set `model.backbone.pretrained` to a safetensors file, to true (download) or false (random start).",
        )
    return weights


def _download(model: str) -> Path:
    import timm
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import logging as hub_logging

    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise PluginFault(f"timm has no weights for {model!r} on the hub", cure="Set `pretrained: false` or a path.")
    cure = (
        "Without a network, set `model.backbone.pretrained` to a safetensors file you copied here "
        f"(model.safetensors of {config.hf_hub_id} on the hub), or to false for a random start."
    )
    try:
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors", local_files_only=True))
    except OSError:
        pass  # not downloaded before
    if not _reachable(constants.ENDPOINT):
        raise PluginFault(f"the weights of {model} cannot be downloaded: the hub is not reachable", cure=cure)
    hub_logging.set_verbosity_error()
    try:
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))
    except OSError as error:
        raise PluginFault(f"the weights of {model} cannot be downloaded: {error}", cure=cure) from error


def _reachable(endpoint: str) -> bool:
    # Without this the hub's client retries for 20 s before it says that there is no network.
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def _suggest(model: str, names: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(model.split(".", maxsplit=1)[0], list(names), n=3)
    return f"Did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists the names."


def _preprocess(config: Mapping[str, Any], in_chans: int) -> Preprocess:
    mean, std = tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
    if in_chans == 1:
        return Preprocess((sum(mean) / len(mean),), (sum(std) / len(std),))
    return Preprocess(mean, std)


def _layers(network: nn.Module) -> dict[str, int]:
    from timm.models import group_parameters

    layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return {f"network.{name}": layer for name, layer in layers.items()}
