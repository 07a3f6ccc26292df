"""The posterior link against closed forms, against minimisation, and against losses that have none."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.errors import PluginError, RunError
from cxrlt_cli.posterior import Link, derive, link_tensors, posterior_of, read_link
from cxrlt_plugins.losses import asl, bce, ldam

STATS = ClassStats(("Effusion", "Mass", "Hernia"), (500, 40, 5), (500, 960, 995))
ONES = np.ones(3)
WEIGHTS = np.array([1.0, 0.048, 90.0])
POINTS = np.random.default_rng(0).uniform(-12, 12, (4000, 1)) * np.ones(3)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def log_odds(p):
    return np.log(p) - np.log1p(-p)


class FromParts(nn.Module):
    """A loss from its two parts, averaged over entries."""

    def __init__(self, positive, negative) -> None:
        super().__init__()
        self.positive, self.negative = positive, negative

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        parts = targets * self.positive(logits) + (1 - targets) * self.negative(logits)
        return (weight * parts).sum() / (weight > 0).sum()


def slope(function):
    """A function whose derivative is ``function``, so that gradients can be prescribed."""
    return lambda z: z * function(z).detach()


def focal(gamma: float) -> FromParts:
    """Focal loss (arXiv 1708.02002): -(1 - p)^gamma log p, and the same with p and 1 - p exchanged."""
    return FromParts(
        lambda z: -torch.exp(gamma * logsigmoid(-z)) * logsigmoid(z),
        lambda z: -torch.exp(gamma * logsigmoid(z)) * logsigmoid(-z),
    )


# closed forms: log-odds, to 1e-4 within the range ---------------------------------------------------------------------


def assert_log_odds(link: Link, expected: np.ndarray, points: np.ndarray = POINTS) -> None:
    inside = np.abs(expected) < 23
    assert inside.any()
    np.testing.assert_allclose(link.log_odds_of(points)[inside], expected[inside], rtol=0, atol=1e-4)


def test_bce_is_the_identity_at_any_logit() -> None:
    link = derive(bce.build(STATS), ONES, ONES)
    z = np.array([-2000, -500, -40, -20, -3, -1e-6, 0, 1e-6, 0.7, 5, 30, 40, 999])[:, None] * ONES
    np.testing.assert_allclose(link.log_odds_of(z), z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(link.posterior(POINTS), sigmoid(POINTS), rtol=1e-4)


def test_weighted_bce_is_shifted_by_the_log_weight() -> None:
    assert_log_odds(derive(bce.build(STATS), WEIGHTS, ONES), POINTS - np.log(WEIGHTS))
    assert_log_odds(derive(bce.build(STATS), ONES, WEIGHTS), POINTS + np.log(WEIGHTS))


@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0])
@pytest.mark.parametrize("weights", [ONES, WEIGHTS], ids=["plain", "re-weighted"])
def test_ldam(scale: float, weights: np.ndarray) -> None:
    loss = ldam.build(STATS, max_margin=0.5, scale=scale)
    u, m = scale * POINTS / 10, scale * loss.margins.numpy().astype(float)
    with np.errstate(over="ignore", divide="ignore"):
        expected = np.log(sigmoid(u)) - np.log(weights * sigmoid(m - u))
    assert_log_odds(derive(loss, weights, ONES), expected, POINTS / 10)


def test_ldam_with_deferred_weights_means_different_things_by_class() -> None:
    link = derive(ldam.build(STATS), WEIGHTS, ONES)
    at_half = link.posterior(np.zeros((1, 3)))[0]
    np.testing.assert_allclose(
        at_half, 0.5 / (0.5 + WEIGHTS * sigmoid(30 * ldam.build(STATS).margins.numpy())), rtol=1e-4
    )


@pytest.mark.parametrize(("p", "posterior"), [(0.2, 0.0235), (0.3, 0.0936), (0.4, 0.2525), (0.5, 0.5)])
def test_focal_values(p: float, posterior: float) -> None:
    link = derive(focal(2), ONES, ONES)
    assert link.posterior(np.full((1, 3), log_odds(p))) == pytest.approx(posterior, abs=6e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_closed_form(gamma: float) -> None:
    """arXiv 2011.09172, theorem 11, written out for log-odds."""
    p = sigmoid(POINTS)
    down = p**gamma * (p - gamma * (1 - p) * np.log1p(-p))
    up = (1 - p) ** gamma * ((1 - p) - gamma * p * np.log(p))
    assert_log_odds(derive(focal(gamma), ONES, ONES), np.log(down) - np.log(up))


@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos", "posterior"), [(4, 1, 0.147), (4, 0, 0.128), (2, 0, 0.312), (2, 1, 0.349)]
)
def test_asl_values_at_one_half(gamma_neg: float, gamma_pos: float, posterior: float) -> None:
    link = derive(asl.build(STATS, gamma_neg=gamma_neg, gamma_pos=gamma_pos), ONES, ONES)
    assert link.posterior(np.zeros((1, 3))) == pytest.approx(posterior, abs=5e-4)


@pytest.mark.parametrize("options", [(4, 1, 0.05), (2, 0, 0.05), (3, 0.5, 0.2), (2, 2, 0.0), (0, 0, 0.05)])
def test_asl_closed_form(options: tuple[float, float, float]) -> None:
    gamma_neg, gamma_pos, clip = options
    p = sigmoid(POINTS)
    q = np.maximum(p - clip, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (1 - p) * p * (-gamma_neg * q ** (gamma_neg - 1) * np.log1p(-q) + q**gamma_neg / (1 - q))
        up = (1 - p) ** gamma_pos * ((1 - p) - gamma_pos * p * np.log(p))
        expected = np.where(p > clip, np.log(down) - np.log(up), -np.inf)
    loss = asl.build(STATS, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    link = derive(loss, ONES, ONES)
    assert_log_odds(link, expected)
    assert (link.log_odds_of(POINTS)[p <= clip] < -23).all()


def test_discarded_negatives_mean_a_posterior_of_zero_and_keep_their_ranks() -> None:
    link = derive(asl.build(STATS), ONES, ONES)
    z = log_odds(0.05) - np.array([1e-6, 1e-3, 1, 10, 1000])[:, None] * ONES
    assert (link.posterior(z) < 1e-9).all()
    assert (np.diff(link.log_odds_of(z), axis=0) < 0).all()


def test_a_jump_is_found_where_it_is() -> None:
    link = derive(asl.build(STATS, gamma_neg=0, gamma_pos=0, clip=0.05), ONES, ONES)
    edge = log_odds(0.05) * np.ones((1, 3))
    assert (link.posterior(edge - 1e-6) < 1e-9).all()
    assert link.posterior(edge + 1e-6) == pytest.approx(0.05 / 1.05, rel=1e-4)


# against minimisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [bce.build(STATS), asl.build(STATS), asl.build(STATS, gamma_neg=2, gamma_pos=0), ldam.build(STATS), focal(2)],
    ids=["bce", "asl(4,1)", "asl(2,0)", "ldam", "focal"],
)
@pytest.mark.parametrize("positives", [3, 200, 800])
def test_minimiser_for_a_prevalence_is_sent_to_that_prevalence(loss: nn.Module, positives: int) -> None:
    targets = torch.zeros(1000, 3, dtype=torch.float64)
    targets[:positives] = 1
    weights = np.array([1.0, 0.048, 4.0])
    weight = torch.where(targets == 1, torch.tensor(weights), 1.0)
    link = derive(loss, weights, ONES)
    for klass in range(3):
        chosen = weight * torch.eye(3, dtype=torch.float64)[klass]

        def risk(z: float, chosen: Tensor = chosen) -> float:
            return float(loss(torch.full_like(targets, z), targets, chosen))

        best = minimize_scalar(risk, bounds=(-12, 12), method="bounded", options={"xatol": 1e-9}).x
        assert link.posterior(np.full((1, 3), best))[0, klass] == pytest.approx(positives / 1000, rel=2e-3)


def test_inverse_is_where_the_loss_answers_with_that_prevalence() -> None:
    prevalence = np.array([0.4, 1e-2, 3e-4])
    for loss in (bce.build(STATS), asl.build(STATS), ldam.build(STATS), focal(2)):
        link = derive(loss, WEIGHTS, ONES)
        logits = link.inverse(log_odds(prevalence))
        np.testing.assert_allclose(link.posterior(logits[None])[0], prevalence, rtol=1e-9)


@pytest.mark.parametrize("target", [-300.0, -40.0, -24.0, 24.0, 40.0, 300.0])
def test_inverse_continues_beyond_the_table(target: float) -> None:
    link = derive(bce.build(STATS), ONES, ONES)
    assert link.inverse(target * ONES) == pytest.approx(target * ONES, rel=1e-4)


def test_inverse_of_what_a_loss_never_answers_is_where_it_levels_off() -> None:
    link = derive(asl.build(STATS, gamma_neg=4, gamma_pos=0), ONES, ONES)
    top = link.posterior(np.full((1, 3), 500.0))[0]
    assert (top < 0.97).all()
    logits = link.inverse(10 * ONES)
    assert (logits < 15).all()
    assert link.posterior(logits[None])[0] == pytest.approx(top, abs=1e-3)


@pytest.mark.parametrize("build", [bce.build, asl.build, ldam.build])
def test_inverse_of_a_table_is_that_of_its_rows(build: Callable[..., nn.Module]) -> None:
    link = derive(build(STATS), WEIGHTS, ONES)
    targets = np.linspace(-60, 60, 3 * 41).reshape(41, 3)
    rows = np.array([link.inverse(row) for row in targets])
    np.testing.assert_array_equal(link.inverse(targets), rows)
    inside = np.abs(targets) < 2
    np.testing.assert_allclose(link.log_odds_of(rows)[inside], targets[inside], atol=1e-9)


# losses of other people -----------------------------------------------------------------------------------------------


class Torch(nn.Module):
    """BCE whose gradient, sigmoid(z) - y, cancels in the tails."""

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, targets, weight)


class SinglePrecision(Torch):
    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return super().forward(logits.float(), targets.float(), weight.float()).double()


@pytest.mark.parametrize(("loss", "error"), [(Torch(), 1e-4), (SinglePrecision(), 2e-2)])
def test_rounding_in_the_tails_is_not_believed(loss: nn.Module, error: float) -> None:
    link = derive(loss, ONES, ONES)
    near, far = np.linspace(-8, 8, 201), np.linspace(-200, 200, 201)
    np.testing.assert_allclose(link.log_odds_of(near[:, None] * ONES)[:, 0], near, atol=error)
    np.testing.assert_allclose(
        link.log_odds_of(far[:, None] * ONES)[:, 0], far, rtol=0.01 if error < 1e-3 else 0.1, atol=0.1
    )


def test_scale_of_the_logits_does_not_matter() -> None:
    for scale in (1e-2, 1.0, 1e3):
        loss = FromParts(
            lambda z, s=scale: softplus(-s * z, threshold=50), lambda z, s=scale: softplus(s * z, threshold=50)
        )
        assert_log_odds(derive(loss, ONES, ONES), scale * (POINTS / scale), POINTS / scale)


def test_losses_with_other_tails() -> None:
    brier = FromParts(lambda z: torch.sigmoid(-z) ** 2, lambda z: torch.sigmoid(z) ** 2)
    exponential = FromParts(lambda z: torch.exp(-z), torch.exp)
    squared = FromParts(lambda z: (1 - z).clamp(min=0) ** 2, lambda z: (1 + z).clamp(min=0) ** 2)
    assert_log_odds(derive(brier, ONES, ONES), POINTS)
    assert_log_odds(derive(exponential, ONES, ONES), 2 * POINTS)
    inside = POINTS / 12.1
    assert_log_odds(derive(squared, ONES, ONES), np.log1p(inside) - np.log1p(-inside), inside)
    assert derive(squared, ONES, ONES).posterior(np.array([[-1.5] * 3, [1.5] * 3])) == pytest.approx(
        np.array([[0.0] * 3, [1.0] * 3]), abs=1e-9
    )


class Inverted(nn.Module):
    """An asymmetric loss whose focusing of negatives is inverted, with the clip on the wrong end: it is 0 at p = 1."""

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        p = torch.sigmoid(logits)
        kept = (1 - p + 0.05).clamp(max=1)
        parts = targets * (1 - p) * -logsigmoid(logits) + (1 - targets) * (1 - p) ** 4 * -torch.log(kept)
        return (weight * parts).mean()


def test_inverted_focusing_is_refused() -> None:
    with pytest.raises(PluginError, match="pushes a negative up") as error:
        derive(Inverted(), ONES, ONES)
    assert error.value.where == "loss Inverted"
    assert "must rise" in error.value.cure


@pytest.mark.parametrize(
    ("positive", "negative", "finding"),
    [
        (softplus, softplus, "pushes a positive down"),
        (lambda z: softplus(-z), lambda z: softplus(-z), "pushes a negative up"),
        (lambda z: softplus(-z), slope(lambda z: torch.sigmoid(z) * (1.2 + torch.sin(3 * z))), "falls as the logit"),
        (slope(lambda z: -torch.sigmoid(z)), slope(lambda z: torch.sigmoid(-z)), "falls as the logit rises"),
        (slope(lambda z: -torch.exp(-z)), slope(lambda z: 0.3 * torch.exp(-z)), "does not depend on the logit"),
        (lambda z: (1 - z).clamp(min=0), lambda z: (1 + z).clamp(min=0), "does not depend on the logit"),
        (lambda z: -z.clamp(max=0), lambda z: 0 * z, "no logit moves both"),
        (slope(lambda z: -torch.ones_like(z)), slope(lambda z: (z < 1) * torch.exp(z)), "as the logit rises to 1"),
        (slope(lambda z: -torch.ones_like(z)), slope(lambda z: torch.special.expit(1e9 * torch.sin(9 * z)) + 0.1),
         "falls|smooth"),
    ],
)  # fmt: skip
def test_gradients_that_make_no_posterior_are_refused(positive, negative, finding: str) -> None:
    with pytest.raises(PluginError, match=finding):
        derive(FromParts(positive, negative), ONES, ONES)


def test_the_class_at_fault_is_named() -> None:
    wrong = torch.tensor([1.0, -1.0, 1.0])
    with pytest.raises(PluginError, match="class number 1"):
        derive(FromParts(lambda z: softplus(-z), lambda z: wrong * softplus(z)), ONES, ONES)


class Declared(Torch):
    pointwise = False


class RowSum(Torch):
    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return super().forward(logits - 0.01 * logits.mean(1, keepdim=True), targets, weight)


class BatchSum(Torch):
    pointwise = True

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return super().forward(logits, targets, weight / (1 + targets.sum(0)))


class Remembering(Torch):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        self.seen += targets.mean()
        return super().forward(logits, targets, weight) / (1 + self.seen)


@pytest.mark.parametrize(
    "loss", [Declared(), RowSum(), BatchSum(), Remembering()], ids=lambda loss: type(loss).__name__
)
def test_losses_that_are_not_pointwise_have_no_link(loss: nn.Module) -> None:
    assert derive(loss, ONES, ONES) is None


def test_the_loss_is_left_as_it_was() -> None:
    loss = Remembering()
    before = copy.deepcopy(loss.state_dict())
    derive(loss, ONES, ONES)
    assert loss.state_dict() == before


class Broken(nn.Module):
    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        raise ValueError("no such class")


class Detached(Torch):
    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return super().forward(logits.detach(), targets, weight)


@pytest.mark.parametrize(("loss", "reason"), [(Broken(), "no such class"), (Detached(), "grad")])
def test_losses_that_cannot_be_differentiated_are_plugin_errors(loss: nn.Module, reason: str) -> None:
    with pytest.raises(PluginError, match=f"gives no gradient.*{reason}"):
        derive(loss, ONES, ONES)


def test_derivation_works_where_gradients_are_switched_off() -> None:
    with torch.inference_mode():
        link = derive(bce.build(STATS), ONES, ONES)
    assert_log_odds(link, POINTS)


@settings(max_examples=30, deadline=None)
@given(
    loss=st.one_of(
        st.builds(asl.Asymmetric, st.floats(0, 6), st.floats(0, 6), st.one_of(st.just(0.0), st.floats(1e-3, 0.5))),
        st.builds(lambda m, s: ldam.build(STATS, max_margin=m, scale=s), st.floats(0, 2), st.floats(0.1, 200)),
    ),
    weight=st.floats(1e-4, 1e4),
)
def test_every_option_gives_a_finite_rising_table_of_bounded_size(loss: nn.Module, weight: float) -> None:
    link = derive(loss, weight * ONES, ONES)
    assert np.isfinite(link.log_odds).all()
    assert (np.diff(link.logit) > 0).all()
    assert (np.diff(link.log_odds) >= 0).all()
    assert link.log_odds.shape == (3, len(link.logit))
    assert len(link.logit) < 8000


# the table ------------------------------------------------------------------------------------------------------------


def test_posteriors_of_extreme_logits_stay_probabilities() -> None:
    link = derive(ldam.build(STATS), ONES, ONES)
    posterior = link.posterior(np.array([[-1e30] * 3, [-1e4] * 3, [1e4] * 3, [1e30] * 3], dtype=np.float32))
    assert posterior.dtype == np.float64
    assert posterior.tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3, [1.0] * 3]


def test_a_missing_logit_stays_missing() -> None:
    link = derive(bce.build(STATS), ONES, ONES)
    assert np.isnan(link.posterior(np.array([[0.0, np.nan, 1.0]]))).tolist() == [[False, True, False]]


def test_without_a_link_logits_are_taken_for_log_odds() -> None:
    link = derive(bce.build(STATS), WEIGHTS, ONES)
    assert np.array_equal(posterior_of(link, POINTS), link.posterior(POINTS))
    np.testing.assert_allclose(posterior_of(None, POINTS.astype(np.float32)), sigmoid(POINTS), rtol=1e-5)
    assert posterior_of(None, np.array([[-1e5, 1e5]])).tolist() == [[0.0, 1.0]]


def test_link_survives_the_model_file(tmp_path) -> None:
    derived = derive(ldam.build(STATS), WEIGHTS, ONES)
    link = Link(derived.logit, np.asfortranarray(derived.log_odds))
    path = tmp_path / "model.safetensors"
    save_file({"head.bias": np.zeros(3, np.float32), **link_tensors(link)}, path)
    again = read_link(path)
    assert np.array_equal(again.logit, link.logit)
    assert np.array_equal(again.log_odds, link.log_odds)


def test_a_model_without_a_link_says_so(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"head.bias": np.zeros(3, np.float32)}, path)
    assert read_link(path) is None


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{}", b"not a model"])
def test_missing_or_damaged_model_is_a_run_error(tmp_path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"model\.safetensors"):
        read_link(path)


def test_reading_a_link_imports_no_torch(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(link_tensors(Link(np.array([-1.0, 1.0]), np.array([[-1.0, 1.0]]))), path)
    code = (
        "import sys, pathlib; from cxrlt_cli.posterior import read_link; "
        "print(read_link(pathlib.Path(sys.argv[1])).posterior([[0.0]]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0.5]] False"
