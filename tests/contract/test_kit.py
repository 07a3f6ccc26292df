"""The conformance kit catches each fault by the rule that names it, and finds nothing in a sound plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrlt_cli.contracts import GROUPS, Preprocess, TestTimeAugmentation, View
from cxrlt_cli.testing import check, rules_of, verify

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def blanked(logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(weight == 0, 0)
    return z, targets.to(z.dtype).masked_fill(weight == 0, 0), weight.to(z.dtype)


def mean(cost: Tensor, weight: Tensor) -> Tensor:
    return (cost * weight).sum() / torch.count_nonzero(weight).clamp(min=1)


def factory(forward: Callable[..., Tensor], **attributes: Any) -> Callable[..., nn.Module]:
    """A loss plugin out of ``forward(self, logits, targets, weight)``."""

    def build(stats: object) -> nn.Module:
        """A loss.

        Args:
            stats: unused.
        """
        return type("Made", (nn.Module,), {"forward": forward, **attributes})()

    return build


def broken(kind: str, build: Callable[..., Any], **options: Any) -> dict[str, str]:
    return {one.rule: one.message for one in check(kind, build, **options) if one.verdict == "broken"}


def entrywise(cost: Formula) -> Callable[..., Tensor]:
    def forward(self: object, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        z, y, w = blanked(logits, targets, weight)
        return mean(cost(z, y, w), w)

    return forward


def cross_entropy(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z, y, reduction="none")


def inverted_asymmetric(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The published fault: a negative is focused by its own right answer, and the clip lowers 1 - p.

    The cost of a negative is 0 where p = 1, so that p = 1 everywhere minimises the loss.
    """
    p = torch.sigmoid(z)
    right = (1 - p - 0.05).clamp(min=0)
    positive = -(1 - p) * torch.log(p.clamp(min=1e-8))
    negative = -(right**4) * torch.log(right.clamp(min=1e-8))
    return y * positive + (1 - y) * negative


def test_a_sound_loss_keeps_every_rule() -> None:
    findings = check("losses", factory(entrywise(cross_entropy)))
    assert [one.rule for one in findings if one.verdict != "kept"] == []
    verify("losses", factory(entrywise(cross_entropy)))


def test_the_inverted_asymmetric_loss_is_caught_and_explained() -> None:
    found = broken("losses", factory(entrywise(inverted_asymmetric)))
    assert "for a negative" in found["slopes_lead_towards_the_label"]
    assert "p^gamma" in found["slopes_lead_towards_the_label"]
    assert "its_posterior_rises_with_the_logit" in found
    with pytest.raises(AssertionError, match="slopes_lead_towards_the_label"):
        verify("losses", factory(entrywise(inverted_asymmetric)))


def forgets_weights(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return cross_entropy(logits, targets.nan_to_num(0).clamp(min=0).to(logits.dtype), weight).mean()


def nan_without_labels(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    return (cross_entropy(z, y, w) * w).sum() / torch.count_nonzero(w)


def divides_by_weights(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    return (cross_entropy(z, y, w) * w).sum() / w.sum().clamp(min=1e-9)


def one_a_row(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    return (cross_entropy(z, y, w) * w).sum(1)


def probability_first(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    p = torch.sigmoid(z)
    return mean(-(y * p.log() + (1 - y) * (1 - p).log()), w)


def half_precision(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return mean(cross_entropy(logits.masked_fill(weight == 0, 0), targets.masked_fill(weight == 0, 0), weight), weight)


def rounds_doubles(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits.float(), targets, weight)
    return mean(cross_entropy(z, y, w), w)


def writes_to_its_input(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    targets.clamp_(0.1, 0.9)
    return mean(cross_entropy(z, y, w), w)


def is_noisy(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    return mean(cross_entropy(z + 0.01 * torch.randn_like(z), y, w), w)


def counts_calls(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    z, y, w = blanked(logits, targets, weight)
    return mean(cross_entropy(z, y, w), w) * self.calls


def switches_gradients_off(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    value = mean(cross_entropy(z, y, w), w)
    torch.set_grad_enabled(False)
    return value


def hard_targets_only(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    cost = cross_entropy(z, y, w)
    return mean(torch.where((y == 0) | (y == 1), cost, cost / 0), w)


def mixes_rows(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    z, y, w = blanked(logits, targets, weight)
    return mean(cross_entropy(z - z.mean(0), y, w), w)


@pytest.mark.parametrize(
    ("forward", "rule"),
    [
        (forgets_weights, "zero_weight_means_zero_gradient"),
        (nan_without_labels, "without_known_labels_it_is_zero"),
        (divides_by_weights, "is_the_sum_over_the_count_of_known_entries"),
        (one_a_row, "is_a_scalar_module"),
        (probability_first, "is_finite_at_extreme_logits"),
        (half_precision, "takes_every_floating_type"),
        (rounds_doubles, "takes_every_floating_type"),
        (writes_to_its_input, "leaves_its_arguments_alone"),
        (is_noisy, "keeps_no_state_between_calls"),
        (counts_calls, "keeps_no_state_between_calls"),
        (switches_gradients_off, "leaves_the_modes_alone"),
        (hard_targets_only, "takes_soft_targets"),
        (mixes_rows, "is_the_sum_over_the_count_of_known_entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_each_fault_of_a_loss_has_its_rule(forward: Callable[..., Tensor], rule: str) -> None:
    try:
        assert rule in broken("losses", factory(forward))
    finally:
        torch.set_grad_enabled(True)


def test_a_loss_of_a_falling_posterior_is_caught() -> None:
    """Bounded costs push a hopeless positive less and less: its gradients make no rising posterior."""

    def redescending(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return y * torch.sigmoid(-z) ** 0.5 + (1 - y) * torch.sigmoid(3 * z)

    assert "its_posterior_rises_with_the_logit" in broken("losses", factory(entrywise(redescending)))


def test_a_stateful_loss_is_judged_in_evaluation_mode() -> None:
    def forward(self: Any, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        z, y, w = blanked(logits, targets, weight)
        if self.training:
            self.calls = getattr(self, "calls", 0) + 1
        return mean(cross_entropy(z, y, w), w)

    assert broken("losses", factory(forward, stateful=True)) == {}


def test_a_factory_that_cannot_be_called_ends_it() -> None:
    def build(stats: object, scale: float) -> nn.Module:
        """Wrong."""
        raise AssertionError("never called")

    (finding, _) = check("losses", build)
    assert finding.verdict == "broken"
    assert "keyword-only" in finding.message


def test_required_options_skip_the_rules_and_examples_lift_it() -> None:
    def build(stats: object, *, must: int) -> nn.Module:
        """A loss.

        Args:
            must: anything.
        """
        return factory(entrywise(cross_entropy))(stats)

    skipped = [one for one in check("losses", build) if one.verdict == "skipped"]
    assert len(skipped) == len(rules_of("losses"))
    assert "must" in skipped[0].message
    assert all(one.verdict == "kept" for one in check("losses", build, must=1))
    build.example = {"must": 1}  # type: ignore[attr-defined]
    assert all(one.verdict == "kept" for one in check("losses", build))


# -- other kinds -------------------------------------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self, width: int, classes: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.weight = nn.Parameter(torch.randn(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.loose = torch.randn(classes)

    def forward(self, features: Tensor) -> Tensor:
        if self.fault == "autocast":
            return features @ self.weight.T.to(features.dtype) + self.bias.to(features.dtype)
        features = features.float()
        if self.fault == "batch":
            features = features - features.mean(0)
        logits = features @ self.weight.T + (2 if self.fault == "bias" else 1) * self.bias
        if self.fault == "loose":
            logits = logits + self.loose
        if self.fault == "random":
            logits = logits + torch.randn_like(logits)
        return logits[:, :2] if self.fault == "shape" else logits.float()


def head(width: int, stats: Any, *, fault: str = "") -> nn.Module:
    """A head.

    Args:
        width: D.
        stats: gives C.
        fault: what is wrong with it.
    """
    return Head(width, len(stats.names), fault)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("shape", "maps_features_to_logits"),
        ("autocast", "logits_keep_full_precision"),
        ("batch", "rows_of_a_head_are_independent"),
        ("bias", "its_bias_is_added_to_the_logits"),
        ("loose", "weights_carry_everything"),
        ("random", "evaluation_is_repeatable"),
    ],
)
def test_each_fault_of_a_head_has_its_rule(fault: str, rule: str) -> None:
    assert broken("heads", head) == {}
    assert rule in broken("heads", head, fault=fault)


class Backbone(nn.Module):
    def __init__(self, in_chans: int, fault: str) -> None:
        super().__init__()
        self.fault, self.width = fault, 9 if fault == "width" else 8
        self.preprocess = Preprocess((0.5,) * (1 if fault == "preprocess" else in_chans), (0.2,) * in_chans)
        self.conv = nn.Conv2d(in_chans, 8, 3, 4)
        self.norm = nn.BatchNorm2d(8, track_running_stats=fault != "batch")
        if fault == "layers":
            self.layer_of, self.depth = lambda name: 5, 2

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_map(images).mean((-2, -1))

    def feature_map(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


def backbone(in_chans: int, image_size: int, *, fault: str = "") -> nn.Module:
    """A backbone.

    Args:
        in_chans: channels.
        image_size: pixels.
        fault: what is wrong with it.
    """
    return Backbone(in_chans, fault)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("width", "pools_and_maps"),
        ("preprocess", "says_how_to_normalise"),
        ("batch", "rows_of_a_backbone_are_independent"),
        ("layers", "layers_cover_the_parameters"),
    ],
)
def test_each_fault_of_a_backbone_has_its_rule(fault: str, rule: str) -> None:
    assert broken("backbones", backbone) == {}
    assert rule in broken("backbones", backbone, fault=fault)


class Sampler:
    def __init__(self, count: int, seed: int, fault: str) -> None:
        self.count, self.seed, self.fault = count, seed, fault
        self.calls = 0

    def indices(self, epoch: int) -> Any:
        self.calls += 1
        entropy = [self.seed, epoch, self.calls if self.fault == "state" else 0]
        order = np.random.default_rng(entropy[1:] if self.fault == "seedless" else entropy).permutation(self.count)
        if self.fault == "global":
            np.random.random()
        if self.fault == "ordered":
            order[:-20].sort()
            order = np.concatenate([np.setdiff1d(order, np.arange(20)), np.arange(20)])
        if self.fault == "length":
            order = order[epoch:]
        return order.astype(np.int32) if self.fault == "type" else order

    def expected(self, epoch: int) -> Any:
        return np.full(self.count, 2.0 if self.fault == "expected" else 1.0)


def sampler(labels: Any, stats: Any, patients: Any, seed: int, epochs: int, *, fault: str = "") -> Sampler:
    """A sampler.

    Args:
        labels: (N, C).
        stats: counts.
        patients: (N,).
        seed: of the run.
        epochs: of the run.
        fault: what is wrong with it.
    """
    return Sampler(len(labels), seed, fault)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("type", "draws_positions_of_the_split"),
        ("length", "epochs_have_one_length"),
        ("state", "is_pure_in_seed_and_epoch"),
        ("global", "is_pure_in_seed_and_epoch"),
        ("seedless", "orders_differ"),
        ("ordered", "the_order_within_an_epoch_is_random"),
        ("expected", "expectations_are_those_of_the_draws"),
    ],
)
def test_each_fault_of_a_sampler_has_its_rule(fault: str, rule: str) -> None:
    assert broken("samplers", sampler) == {}
    assert rule in broken("samplers", sampler, fault=fault)


def same(images: Tensor) -> Tensor:
    return images


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda images: images * 0.9,
    "range": lambda images: images + 0.1,
    "shape": lambda images: images[..., 1:],
    "batch": lambda images: images - images.min() + 0 * images,
    "random": lambda images: images * torch.rand(()),
    "writes": lambda images: images.mul_(0.5),
    "numbers": lambda images: images.numpy(),  # type: ignore[dict-item,return-value]  # that is the fault
}


def views(*, fault: str = "", first: bool = True, needs: str = "gamma", merge: str = "mean") -> TestTimeAugmentation:
    """Two views.

    Args:
        fault: what the second does.
        first: begin with the identity.
        needs: of the second.
        merge: how.
    """
    second = View("second", VIEWS[fault], frozenset({needs}))
    return TestTimeAugmentation((View("identity", same if first else VIEWS[""]), second), merge=merge)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"first": False}, "begins_with_the_identity"),
        ({"fault": "range"}, "keeps_shape_and_range"),
        ({"fault": "shape"}, "keeps_shape_and_range"),
        ({"fault": "batch"}, "images_are_seen_one_by_one"),
        ({"fault": "random"}, "views_are_pure"),
        ({"fault": "writes"}, "views_are_pure"),
        ({"fault": "numbers"}, "keeps_shape_and_range"),
        ({"needs": "gama"}, "names_what_it_needs"),
        ({"merge": "mode"}, "merges_as_the_host_can"),
    ],
    ids=str,
)
def test_each_fault_of_views_has_its_rule(options: dict[str, Any], rule: str) -> None:
    assert broken("tta", views) == {}
    assert rule in broken("tta", views, **options)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"needs": ["gamma"]}, "`needs` of the view 'second' is a list, not a frozenset"),
        ({"needs": "gamma"}, "`needs` of the view 'second' is a str, not a frozenset"),
        ({"classes": "Mass"}, "`classes` of the view 'second' is a str, not a frozenset"),
        ({"projections": ("PA",)}, "`projections` of the view 'second' is a tuple, not a frozenset"),
        ({"projections": frozenset({"pa", "PA"})}, "the view 'second' is for pa; projections: PA, AP, lateral"),
    ],
    ids=["needs a list", "needs a text", "classes a text", "projections a tuple", "no such projection"],
)
def test_where_a_view_is_valid_is_checked(view: dict[str, Any], said: str) -> None:
    def factory() -> TestTimeAugmentation:
        """Two views."""
        return TestTimeAugmentation((View("identity", same), View("second", VIEWS[""], **view)))

    assert list(broken("tta", factory).values()) == [said]


def test_every_kind_has_rules_that_say_what_they_ask() -> None:
    for kind in GROUPS:
        for rule in rules_of(kind):
            assert (rule.__doc__ or "").strip().endswith((".", ")."))
    with pytest.raises(ValueError, match="there is no kind"):
        rules_of("loss")
