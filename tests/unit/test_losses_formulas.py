"""Each loss against its paper's formula written out in numpy, its limit cases, and the meaning of its logits."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from loss_batches import LOPSIDED, STATS, batch, close, entry, from_timm, sigmoid, value_and_gradient
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from cxrlt_cli.contracts import PluginFault
from cxrlt_cli.posterior import derive
from cxrlt_cli.recipe.schema import Reweight
from cxrlt_cli.reweight import class_weights
from cxrlt_plugins.losses import asl, bce, cb_focal, focal, hill, logit_adjusted, ral, wbce

ONES = np.ones(3)
LOGITS = [-12.0, -3.0, -0.4, 0.0, 0.9, 2.5, 12.0]


# formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", LOGITS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal(z: float, gamma: float) -> None:
    loss, p, q = focal.build(STATS, gamma=gamma), sigmoid(z), sigmoid(-z)
    assert entry(loss, z, 1, 0) == pytest.approx(q**gamma * -math.log(p), rel=1e-9)
    assert entry(loss, z, 0, 0) == pytest.approx(p**gamma * -math.log(q), rel=1e-9)


def test_focal_by_hand() -> None:
    assert entry(focal.build(STATS), math.log(4), 1, 0) == pytest.approx(0.04 * math.log(1.25), rel=1e-9)
    assert entry(focal.build(STATS), math.log(4), 0, 0) == pytest.approx(0.64 * math.log(5), rel=1e-9)


@pytest.mark.parametrize("z", LOGITS)
def test_wbce(z: float) -> None:
    for options, weights in (
        ({}, (1, math.sqrt(24), math.sqrt(199))),
        ({"power": 1.0}, (1, 24, 100)),
        ({"power": 1.0, "cap": None}, (1, 24, 199)),
        ({"power": 1.0, "cap": 0.5}, (0.5, 0.5, 0.5)),
    ):
        loss = wbce.build(STATS, **options)
        for klass, weight in enumerate(weights):
            assert entry(loss, z, 1, klass) == pytest.approx(weight * math.log1p(math.exp(-z)), rel=1e-6)
            assert entry(loss, z, 0, klass) == pytest.approx(math.log1p(math.exp(z)), rel=1e-9)


def test_wbce_agrees_with_torch() -> None:
    logits, targets, weight = batch()
    got = wbce.build(STATS, power=1, cap=None)(logits, targets, weight)
    expected = nn.BCEWithLogitsLoss(weight, pos_weight=torch.tensor([1.0, 24, 199], dtype=torch.float64))
    close(got, expected(logits, targets), rtol=1e-7)


def test_wbce_takes_a_count_of_none_for_one() -> None:
    assert wbce.positive_weights(LOPSIDED, 1.0, None) == pytest.approx([1 / 1000, 24, 1000])


def test_class_balanced_weights() -> None:
    """The published table: 1 / effective number, the weights averaging 1."""
    beta = 0.99
    effective = (1 - beta ** np.array([500, 40, 5])) / (1 - beta)
    assert cb_focal.balanced_weights((500, 40, 5), beta) == pytest.approx(3 / effective / (1 / effective).sum())
    assert np.mean(cb_focal.balanced_weights((43585, 13277, 45), 0.9999)) == pytest.approx(1)
    # towards 1 the effective number is the count itself
    weights = cb_focal.balanced_weights((500, 40, 5), 1 - 1e-12)
    assert weights == pytest.approx(np.array([1 / 500, 1 / 40, 1 / 5]) * 3 / (1 / 500 + 1 / 40 + 1 / 5), rel=1e-6)


def test_a_class_without_positives_is_balanced_like_the_most_frequent() -> None:
    weights = cb_focal.balanced_weights((500, 40, 0), 0.999)
    assert weights[2] == weights[0]
    assert weights[:2] == cb_focal.balanced_weights((500, 40), 0.999)
    assert cb_focal.balanced_weights((0, 0), 0.999) == [1, 1]


@pytest.mark.parametrize("z", LOGITS)
def test_cb_focal(z: float) -> None:
    loss, weights = cb_focal.build(STATS, beta=0.99, gamma=1.5), cb_focal.balanced_weights(STATS.positives, 0.99)
    p, q = sigmoid(z), sigmoid(-z)
    for klass, weight in enumerate(weights):
        assert entry(loss, z, 1, klass) == pytest.approx(weight * q**1.5 * -math.log(p), rel=1e-6)
        assert entry(loss, z, 0, klass) == pytest.approx(weight * p**1.5 * -math.log(q), rel=1e-6)


@pytest.mark.parametrize("z", LOGITS)
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_logit_adjusted(z: float, tau: float) -> None:
    """By hand: 40.5 of 1001 is the smoothed share of the second class."""
    moved = z + tau * math.log(40.5 / 960.5)
    loss = logit_adjusted.build(STATS, tau=tau)
    assert entry(loss, z, 1, 1) == pytest.approx(math.log1p(math.exp(-moved)), rel=1e-6)
    assert entry(loss, z, 0, 1) == pytest.approx(math.log1p(math.exp(moved)), rel=1e-6)


def test_logit_adjustment_of_an_absent_class_is_finite() -> None:
    shift = logit_adjusted.build(LOPSIDED).shift.numpy()
    np.testing.assert_allclose(shift, [math.log(1000.5 / 0.5), math.log(40.5 / 960.5), -math.log(1000.5 / 0.5)], 1e-6)


@pytest.mark.parametrize("z", LOGITS)
@pytest.mark.parametrize("options", [(1.5, 1.0, 2.0), (2.0, 0.5, 1.0), (3.0, 0.0, 2.5)])
def test_hill(z: float, options: tuple[float, float, float]) -> None:
    lamb, margin, gamma = options
    loss = hill.build(STATS, lamb=lamb, margin=margin, gamma=gamma)
    p, pm, qm = sigmoid(z), sigmoid(z - margin), sigmoid(margin - z)
    assert entry(loss, z, 1, 0) == pytest.approx(qm**gamma * -math.log(pm), rel=1e-9)
    assert entry(loss, z, 0, 0) == pytest.approx((lamb - p) * p**2, rel=1e-9)


def test_slope_of_hills_negatives() -> None:
    """3 p^2 (1 - p)^2 for lamb 1.5, in single precision as well, far out on both sides."""
    z = torch.tensor([-30.0, -12, -1, 0, 1e-6, 1, 12, 30])[:, None]
    ones = torch.ones_like(z)
    _, gradient = value_and_gradient(hill.Hill(), z, 0 * ones, ones)
    exact = 3 * (torch.sigmoid(z.double()) * torch.sigmoid(-z.double())) ** 2 / len(z)
    close(gradient.double(), exact, rtol=1e-5, atol=0)


def ral_parts(z: float, **o: float) -> tuple[float, float]:
    p, q = sigmoid(z), sigmoid(-z)
    pm = max(p - o["clip"], 0)
    positive = q ** o["gamma_pos"] * (-math.log(p) - o["poly1"] * q - o["poly2"] * q * q / 2)
    negative = pm ** o["gamma_neg"] * -math.log(1 - pm) * (o["lamb"] - p) * p * p * (o["lamb"] - (1 - pm))
    return positive, negative


RAL = {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05, "poly1": 1.0, "poly2": -2.5, "lamb": 1.5}


@pytest.mark.parametrize("z", [-4.0, -2.5, -0.4, 0.0, 0.9, 2.5, 4.0])
@pytest.mark.parametrize("change", [{}, {"clip": 0.2, "gamma_pos": 1.0}, {"poly1": 0.3, "poly2": 0.7, "lamb": 2.0}])
def test_ral(z: float, change: dict[str, float]) -> None:
    options = RAL | change
    loss = ral.build(STATS, **options)
    positive, negative = ral_parts(z, **options)
    assert entry(loss, z, 1, 0) == pytest.approx(positive, rel=1e-8)
    assert entry(loss, z, 0, 0) == pytest.approx(negative, rel=1e-9)


def test_slope_of_the_remainder() -> None:
    """The slope of -log p without its first two terms is -q^3, also where the terms cancel to the last digit."""
    z = torch.tensor([-20.0, -1, 0, 1, 8, 15, 40])[:, None]
    ones = torch.ones_like(z)
    _, gradient = value_and_gradient(ral.build(STATS, poly1=1, poly2=1), z, ones, ones)
    close(gradient, -(torch.sigmoid(-z) ** 3) / len(z), rtol=1e-5, atol=0)


def test_asl_agrees_with_timm() -> None:
    logits, targets, _ = batch(64)
    theirs = from_timm("asymmetric_loss").AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, reduction="mean")
    ours = asl.build(STATS)(logits, targets, torch.ones_like(logits))
    assert ours.item() == pytest.approx(theirs(logits, targets).item(), rel=1e-5)


def test_class_weighted_asl_is_asl_with_reweight() -> None:
    logits, targets, _ = batch(64)
    positive, negative = class_weights(STATS, Reweight(scheme="root-inverse", apply_to="both"), 1.0)
    weight = torch.where(targets == 1, torch.tensor(positive), torch.tensor(negative))
    p = torch.sigmoid(logits).numpy()
    pm = np.maximum(p - 0.05, 0)
    parts = np.where(targets == 1, (1 - p) * -np.log(p), pm**4 * -np.log(1 - pm))
    expected = (np.sqrt([1, 500 / 40, 500 / 5]) * parts).mean()
    assert asl.build(STATS)(logits, targets, weight).item() == pytest.approx(expected, rel=1e-9)


# limit cases ------------------------------------------------------------------------------------------------------

LIMITS = {
    "focal(0)": (focal.build(STATS, gamma=0), bce.build(STATS)),
    "wbce(0)": (wbce.build(STATS, power=0), bce.build(STATS)),
    "wbce, half": (wbce.build(LOPSIDED, power=0), bce.build(STATS)),
    "logit-adjusted(0)": (logit_adjusted.build(STATS, tau=0), bce.build(STATS)),
    "cb-focal(0)": (cb_focal.build(STATS, beta=0), focal.build(STATS)),
    "cb-focal(0, 0)": (cb_focal.build(STATS, beta=0, gamma=0), bce.build(STATS)),
    "asl(2, 2, 0)": (asl.build(STATS, gamma_neg=2, gamma_pos=2, clip=0), focal.build(STATS)),
    "ral(0, 0, none)": (ral.build(STATS, gamma_pos=1, poly1=0, poly2=0, lamb=None), asl.build(STATS)),
    "ral, all off": (ral.build(STATS, gamma_neg=0, clip=0, poly1=0, poly2=0, lamb=None), bce.build(STATS)),
}


@pytest.mark.parametrize(("special", "plain"), LIMITS.values(), ids=LIMITS.keys())
def test_limit_cases(special: nn.Module, plain: nn.Module) -> None:
    logits, targets, weight = batch(64)
    targets = torch.where(torch.arange(64)[:, None] % 4 == 0, 0.3, targets)
    value, gradient = value_and_gradient(special, 4 * logits, targets, weight)
    expected, expected_gradient = value_and_gradient(plain, 4 * logits, targets, weight)
    close(value, expected, rtol=1e-9, atol=0)
    close(gradient, expected_gradient, rtol=1e-6, atol=1e-12)


# posteriors -------------------------------------------------------------------------------------------------------

POINTS = np.random.default_rng(0).uniform(-10, 10, (2000, 1)) * ONES
P, Q = 1 / (1 + np.exp(-POINTS)), 1 / (1 + np.exp(POINTS))
FOCAL = np.log(P**2 * (P - 2 * Q * np.log(Q))) - np.log(Q**2 * (Q - 2 * P * np.log(P)))
PM, QM = 1 / (1 + np.exp(1 - POINTS)), 1 / (1 + np.exp(POINTS - 1))
CLOSED = {
    "wbce": (wbce.build(STATS), POINTS - np.log(np.sqrt([1, 24, 199]))),
    "wbce, capped": (wbce.build(STATS, power=1, cap=50), POINTS - np.log([1, 24, 50])),
    "focal": (focal.build(STATS), FOCAL),
    "cb-focal": (cb_focal.build(STATS, beta=0.99), FOCAL),
    "logit-adjusted": (logit_adjusted.build(STATS), POINTS + np.log([1, 40.5 / 960.5, 5.5 / 995.5])),
    "hill": (hill.build(STATS), np.log(3 * P**2 * Q**2) - np.log(QM**2 * (QM - 2 * PM * np.log(PM)))),
    "ral, positives": (
        ral.build(STATS, gamma_neg=0, clip=0, lamb=None),
        np.log(P) - np.log(Q**2 * (1 + 2.5 * P)),
    ),
}


@pytest.mark.parametrize(("loss", "expected"), CLOSED.values(), ids=CLOSED.keys())
def test_posterior_closed_forms(loss: nn.Module, expected: np.ndarray) -> None:
    link = derive(loss, ONES, ONES)
    assert link is not None
    # beyond 8 both slopes of Hill are lost in rounding, and the table continues its own slope
    inside = (np.abs(expected) < 22) & (POINTS < 8)
    np.testing.assert_allclose(link.log_odds_of(POINTS)[inside], expected[inside], rtol=0, atol=2e-4)


def test_the_classes_without_positives_have_a_link_too() -> None:
    for build in (wbce.build, logit_adjusted.build, cb_focal.build):
        link = derive(build(LOPSIDED), ONES, ONES)
        assert link is not None
        assert np.isfinite(link.log_odds).all()


@pytest.mark.parametrize(("loss", "posterior"), [(hill.build(STATS), 0.196), (ral.build(STATS), 0.040)])
def test_what_a_logit_of_0_means(loss: nn.Module, posterior: float) -> None:
    link = derive(loss, ONES, ONES)
    assert link is not None
    assert link.posterior(np.zeros((1, 3))) == pytest.approx(posterior, abs=5e-4)


MINIMISED = [wbce.build(STATS), cb_focal.build(STATS), hill.build(STATS), hill.build(STATS, lamb=2.5, gamma=1),
             ral.build(STATS), ral.build(STATS, gamma_neg=1, clip=0.2, poly2=0.5, lamb=3)]  # fmt: skip


@pytest.mark.parametrize("loss", MINIMISED, ids=repr)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.8])
def test_minimiser_for_a_prevalence_is_sent_to_that_prevalence(loss: nn.Module, share: float) -> None:
    link = derive(loss, ONES, ONES)
    assert link is not None
    for klass in range(3):

        def risk(z: float, klass: int = klass) -> float:
            return share * entry(loss, z, 1, klass) + (1 - share) * entry(loss, z, 0, klass)

        best = minimize_scalar(risk, bounds=(-8, 12), method="bounded", options={"xatol": 1e-9}).x
        assert link.posterior(np.full((1, 3), best))[0, klass] == pytest.approx(share, rel=2e-3)


def test_hill_without_a_posterior_is_refused() -> None:
    """The judgement agrees with what the link finds on the loss itself."""
    for lamb, margin, gamma in ((1.5, 1, 1), (1.5, 2, 2), (2, 2, 1), (1.5, 0, 0)):
        with pytest.raises(PluginFault, match=f"gamma is {gamma} with margin {margin}"):
            hill.build(STATS, lamb=lamb, margin=margin, gamma=gamma)
        with pytest.raises(Exception, match="falls as the logit rises"):
            derive(hill.Hill(lamb, margin, gamma), ONES, ONES)
    for lamb, margin, gamma in ((1.5, 0, 2), (2, 1, 1), (2, 2, 2), (3, 2, 1), (1.5, 1, 3)):
        assert derive(hill.build(STATS, lamb=lamb, margin=margin, gamma=gamma), ONES, ONES) is not None


def test_hills_negatives_turn_back_below_the_smallest_lamb_accepted() -> None:
    """Why lamb has a lower bound: (lamb - p) p^2 falls beyond p = 2 lamb / 3."""
    z = torch.tensor([[5.0]])
    _, gradient = value_and_gradient(hill.Hill(lamb=1.3), z, 0 * z, torch.ones_like(z))
    assert gradient < 0


# options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "options", "named"),
    [
        (wbce, {"power": -1.0}, "power is -1.0"),
        (wbce, {"cap": 0.0}, "cap is 0.0"),
        (focal, {"gamma": math.nan}, "gamma is nan"),
        (cb_focal, {"beta": 1.0}, "beta is 1.0"),
        (cb_focal, {"gamma": -1.0}, "gamma is -1.0"),
        (logit_adjusted, {"tau": math.inf}, "tau is inf"),
        (hill, {"lamb": 1.4}, "lamb is 1.4"),
        (hill, {"margin": -0.1}, "margin is -0.1"),
        (ral, {"gamma_pos": -1.0}, "gamma_pos is -1.0"),
        (ral, {"clip": 1.0}, "clip is 1.0"),
        (ral, {"poly1": 1.1}, "poly1 is 1.1"),
        (ral, {"poly2": -math.inf}, "poly2 is -inf"),
        (ral, {"lamb": 1.0}, "lamb is 1.0"),
    ],
)
def test_options_out_of_range_are_refused(module: ModuleType, options: dict[str, float], named: str) -> None:
    with pytest.raises(PluginFault, match=named) as fault:
        module.build(STATS, **options)
    assert fault.value.cure


def test_buffers_follow_the_device_and_are_not_saved() -> None:
    for loss in (wbce.build(STATS), cb_focal.build(STATS), logit_adjusted.build(STATS)):
        assert list(dict(loss.named_buffers()))
        assert not loss.state_dict()


def test_mixed_precision_of_counts_and_logits() -> None:
    logits: Tensor = batch(dtype=torch.float32)[0]
    for loss in (wbce.build(STATS), cb_focal.build(STATS), logit_adjusted.build(STATS)):
        assert loss(logits.bfloat16(), torch.ones_like(logits), torch.ones_like(logits)).dtype == torch.float32
