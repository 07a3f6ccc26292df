"""Rules of ``cxrlt.heads`` and ``cxrlt.backbones``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import Preprocess
from cxrlt_cli.testing.rules import CLASSES, STATS, Broken, Rule, Skip, Subject

WIDTH, ROWS, SIZE = 16, 6, 64


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build().eval()


def _same_rows(whole: Tensor, alone: Tensor, what: str) -> None:
    """Rows computed together and one by one agree up to float32 rounding."""
    off = float((whole - alone).abs().max() / whole.abs().max().clamp(min=1e-6))
    if not off < 1e-3:
        raise Broken(
            f"in evaluation mode {what} of an image depends on the images beside it (by {off:.1%} of the largest "
            "value): nothing may be normalised or pooled over the batch there"
        )


# -- heads ---------------------------------------------------------------------------------------------------------


def _head(subject: Subject, seed: int = 0) -> Any:
    return _seeded(lambda: subject.build(WIDTH, STATS), seed)


def _features(head: Any) -> Tensor:
    return _random(ROWS, WIDTH, 4, 5) if getattr(head, "spatial", False) else _random(ROWS, WIDTH)


def maps_features_to_logits(subject: Subject) -> None:
    """A head is an nn.Module from features (B, D), or a map (B, D, h, w) if `spatial`, to logits (B, C)."""
    head = _head(subject)
    if not isinstance(head, nn.Module):
        raise Broken(f"the factory returns a {type(head).__name__}, not a torch.nn.Module")
    features = _features(head).requires_grad_()
    logits = head(features)
    if tuple(logits.shape) != (ROWS, CLASSES):
        raise Broken(f"features {tuple(features.shape)} give logits {tuple(logits.shape)}, not {(ROWS, CLASSES)}")
    (gradient,) = torch.autograd.grad(logits.square().sum(), features)
    if not gradient.isfinite().all() or not gradient.any():
        raise Broken("no finite, non-zero gradient reaches the features")


def logits_keep_full_precision(subject: Subject) -> None:
    """Under autocast a head still answers in float32: bfloat16 logits tie by the thousand, and ties change AP."""
    head = _head(subject)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = head(_features(head).bfloat16())
    if logits.dtype not in {torch.float32, torch.float64}:
        raise Broken(f"under bfloat16 autocast its logits are {logits.dtype}; compute the last layer in float32")


def rows_of_a_head_are_independent(subject: Subject) -> None:
    """In evaluation mode the logits of an image do not depend on the batch around it."""
    head = _head(subject)
    features = _features(head)
    with torch.no_grad():
        _same_rows(head(features), torch.cat([head(row[None]) for row in features]), "the logit")


def its_bias_is_added_to_the_logits(subject: Subject) -> None:
    """A parameter called `bias` (C,) shifts the logits one to one; the host starts it at the class priors."""
    head = _head(subject)
    bias = getattr(head, "bias", None)
    if bias is None:
        raise Skip("the head has no bias; it starts wherever its weights put it")
    if tuple(bias.shape) != (CLASSES,):
        raise Broken(f"its bias has the shape {tuple(bias.shape)}, not ({CLASSES},)")
    shift = torch.arange(1.0, CLASSES + 1)
    with torch.no_grad():
        before = head(_features(head))
        bias += shift
        moved = head(_features(head)) - before
    if not torch.allclose(moved, shift.expand_as(moved), atol=1e-3):
        raise Broken(f"raising the bias by {shift.tolist()} moves the logits by {moved[0].tolist()}")


# -- backbones -----------------------------------------------------------------------------------------------------


def _backbone(subject: Subject, channels: int = 3, seed: int = 0) -> Any:
    return _seeded(lambda: subject.build(channels, SIZE), seed)


def pools_and_maps(subject: Subject) -> None:
    """A backbone gives features (B, width) and the map before pooling (B, width, h, w), for 1 and for 3 channels."""
    for channels in (1, 3):
        backbone, images = _backbone(subject, channels), _random(2, channels, SIZE, SIZE)
        with torch.no_grad():
            features, maps = backbone(images), backbone.feature_map(images)
        if tuple(features.shape) != (2, backbone.width):
            raise Broken(f"forward gives {tuple(features.shape)}; its width says (2, {backbone.width})")
        if maps.ndim != 4 or tuple(maps.shape[:2]) != (2, backbone.width):
            raise Broken(f"feature_map gives {tuple(maps.shape)}; it should be (2, {backbone.width}, h, w)")


def says_how_to_normalise(subject: Subject) -> None:
    """`preprocess` holds a mean and a standard deviation above 0 for every channel."""
    for channels in (1, 3):
        preprocess = _backbone(subject, channels).preprocess
        if not isinstance(preprocess, Preprocess):
            raise Broken(f"preprocess is a {type(preprocess).__name__}, not a cxrlt_cli.contracts.Preprocess")
        if not len(preprocess.mean) == len(preprocess.std) == channels or min(preprocess.std) <= 0:
            raise Broken(f"for {channels} channels preprocess is {preprocess}")


def rows_of_a_backbone_are_independent(subject: Subject) -> None:
    """In evaluation mode the features of an image do not depend on the batch around it."""
    backbone, images = _backbone(subject), _random(3, 3, SIZE, SIZE)
    with torch.no_grad():
        _same_rows(backbone(images), torch.cat([backbone(image[None]) for image in images]), "the feature vector")


def layers_cover_the_parameters(subject: Subject) -> None:
    """`layer_of` and `depth`, where offered, number every parameter from 0 to depth - 1."""
    backbone = _backbone(subject)
    if not hasattr(backbone, "layer_of"):
        raise Skip("the backbone offers no layers, so optim.layer_decay cannot be used with it")
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    outside = [name for name, layer in layers.items() if not 0 <= layer < backbone.depth]
    if outside or min(layers.values()) != 0:
        raise Broken(f"depth is {backbone.depth}, but the layers are {sorted(set(layers.values()))}: {outside[:3]}")


# -- both ----------------------------------------------------------------------------------------------------------


def weights_carry_everything(subject: Subject) -> None:
    """The state_dict of one network makes another one, built with other random weights, answer the same."""
    make = _head if subject.kind == "heads" else _backbone
    one, other = make(subject, seed=0), make(subject, seed=1)
    state = one.state_dict()
    if any(not isinstance(value, Tensor) for value in state.values()):
        raise Broken("its state_dict holds things that are not tensors; weights are stored without pickle")
    other.load_state_dict(state)
    given = _features(one) if subject.kind == "heads" else _random(2, 3, SIZE, SIZE)
    with torch.no_grad():
        if not torch.allclose(one(given), other(given), atol=1e-5):
            raise Broken("it answers differently after loading: something it needs is not a parameter or a buffer")


def evaluation_is_repeatable(subject: Subject) -> None:
    """In evaluation mode the same input gives the same answer, no weight moves, and gradient mode stays as it was."""
    network = _head(subject) if subject.kind == "heads" else _backbone(subject)
    given = _features(network) if subject.kind == "heads" else _random(2, 3, SIZE, SIZE)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = network(given), network(given)
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise Broken("it switches gradients off")
    if not torch.equal(first, second):
        raise Broken("the second answer differs from the first: something is drawn at random in evaluation mode")
    moved = [name for name, value in network.state_dict().items() if not torch.equal(kept[name], value)]
    if moved:
        raise Broken(f"evaluating changed {', '.join(moved[:3])}")


HEADS: Sequence[Rule] = (
    maps_features_to_logits,
    logits_keep_full_precision,
    rows_of_a_head_are_independent,
    its_bias_is_added_to_the_logits,
    weights_carry_everything,
    evaluation_is_repeatable,
)
BACKBONES: Sequence[Rule] = (
    pools_and_maps,
    says_how_to_normalise,
    rows_of_a_backbone_are_independent,
    layers_cover_the_parameters,
    weights_carry_everything,
    evaluation_is_repeatable,
)
