"""The link of a loss that saw smoothed labels: against closed forms and against a minimiser found by search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.engine.targets import make_targets
from cxrlt_cli.posterior import derive, unsmoothed
from cxrlt_cli.registry import build

STATS = ClassStats(("a", "b"), (40, 2), (60, 98))
LEVEL = np.array([0.4, 0.02])


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("level", [0.5, LEVEL])
@pytest.mark.parametrize("smoothing", [0.01, 0.1, 0.5])
def test_cross_entropy_has_a_closed_form(smoothing: float, level: float | np.ndarray) -> None:
    link = unsmoothed(derive(build("losses", {"name": "bce"}, STATS), [1, 1], [1, 1]), smoothing, level)
    eta = sigmoid(np.linspace(-8, 8, 301))[:, None] * np.ones(2)
    smooth = (1 - smoothing) * eta + smoothing * level
    found = link.log_odds_of(np.log(smooth / (1 - smooth)))
    np.testing.assert_allclose(found, np.log(eta / (1 - eta)), atol=0.003)


def test_it_rises_everywhere_so_that_ranks_survive() -> None:
    link = unsmoothed(derive(build("losses", {"name": "asl"}, STATS), [1, 1], [1, 1]), 0.1, LEVEL)
    assert (np.diff(link.log_odds_of(np.linspace(-30, 30, 2001)[:, None] * np.ones(2)), axis=0) > 0).all()
    assert link.posterior(np.array([[-9.0, -9.0]])).max() < 2e-6


def test_without_smoothing_nothing_changes() -> None:
    link = derive(build("losses", {"name": "ldam"}, STATS), [1, 1], [1, 1])
    assert link is not None
    assert unsmoothed(link, 0.0, LEVEL) is link


@pytest.mark.parametrize(("name", "eta"), [("bce", 0.03), ("ldam", 0.2), ("focal", 0.7), ("wbce", 0.01)])
def test_the_minimiser_of_the_smoothed_weighted_loss_means_the_posterior(name: str, eta: float) -> None:
    loss, weights = build("losses", {"name": name}, STATS), (np.array([4.0, 9.0]), np.array([1.0, 0.5]))
    link = unsmoothed(derive(loss, *weights), 0.1, LEVEL)
    pair = make_targets(np.array([[1, 1], [0, 0]], np.int8), weights, smoothing=0.1, level=LEVEL)
    target, weight = torch.tensor(pair.target).double(), torch.tensor(pair.weight).double()

    def risk(z: float, klass: int) -> float:
        logits = torch.full((1, 2), z, dtype=torch.float64)
        only = torch.zeros(2).double().index_fill(0, torch.tensor(klass), 1.0)
        one, zero = (float(loss(logits, target[[i]], weight[[i]] * only)) for i in (0, 1))
        return eta * one + (1 - eta) * zero

    for klass in (0, 1):
        best = minimize_scalar(risk, bounds=(-12, 12), args=(klass,), method="bounded", options={"xatol": 1e-9}).x
        assert link.posterior(np.full((1, 2), best))[0, klass] == pytest.approx(eta, rel=0.01)


def test_the_inverse_leads_back() -> None:
    link = unsmoothed(derive(build("losses", {"name": "bce"}, STATS), [1, 1], [1, 1]), 0.1, LEVEL)
    prior = np.log(LEVEL / (1 - LEVEL))
    np.testing.assert_allclose(link.log_odds_of(link.inverse(prior)[None])[0], prior, atol=1e-6)
