"""The built-in heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from cxrlt_cli.contracts import ClassStats, PluginFault
from cxrlt_plugins.heads import cosine, linear

STATS = ClassStats(("Effusion", "Mass", "Hernia"), (500, 40, 5), (500, 960, 995))
WIDTH = 8
HEADS = {
    "linear": lambda: linear.build(WIDTH, STATS),
    "linear-paper": lambda: linear.build(WIDTH, STATS, norm=True, dropout=0.5),
    "cosine": lambda: cosine.build(WIDTH, STATS),
    "cosine-16": lambda: cosine.build(WIDTH, STATS, scale=16.0),
}
every_head = pytest.mark.parametrize("build", HEADS.values(), ids=HEADS.keys())


def close(got: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Without ``torch.testing``, whose first call imports half of torch for seconds."""
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)


def features(rows: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@every_head
def test_bias_is_a_parameter_added_to_the_logits(build) -> None:
    head = build().eval()
    assert isinstance(head.bias, nn.Parameter)
    assert head.bias.shape == (3,)
    before = head(features())
    with torch.no_grad():
        head.bias += torch.tensor([1.0, -2.0, 0.5])
    close(head(features()), before + torch.tensor([1.0, -2.0, 0.5]))


@every_head
def test_logits_are_float32_under_autocast_and_not_rounded(build) -> None:
    head = build().eval()
    expected = head(features().bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features().bfloat16())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


@every_head
def test_zero_features_give_the_bias_and_finite_gradients(build) -> None:
    head = build().eval()
    zeros = torch.zeros(2, WIDTH, requires_grad=True)
    logits = head(zeros)
    assert torch.equal(logits, head.bias.expand(2, 3))
    logits.sum().backward()
    assert zeros.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@every_head
def test_every_parameter_is_saved_and_trained(build) -> None:
    head = build().eval()
    (head(features()) ** 2).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    twin = build().eval()
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin(features()), head(features()))


def test_linear_is_an_affine_map() -> None:
    head = linear.build(WIDTH, STATS)
    close(head(features()), features() @ head.weight.T + head.bias)


def test_the_paper_s_head_normalises_and_drops() -> None:
    torch.manual_seed(0)
    head = linear.build(WIDTH, STATS, norm=True, dropout=0.5)
    x = features()
    normalised = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    close(head.eval()(x), normalised @ head.weight.T)
    assert not torch.equal(head.train()(x), head.train()(x))


def test_linear_starts_near_its_bias() -> None:
    torch.manual_seed(0)
    head = linear.build(1024, STATS)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.bias.tolist() == [0, 0, 0]


def test_cosine_is_scale_times_the_cosine() -> None:
    head = cosine.build(WIDTH, STATS, scale=7.0).double()
    x = features().double()
    expected = 7 * cosine_similarity(x[:, None], head.weight[None], dim=2)
    close(head(x), expected, rtol=1e-12, atol=1e-12)


def test_cosine_ignores_lengths() -> None:
    head = cosine.build(WIDTH, STATS)
    expected = head(features())
    with torch.no_grad():
        head.weight *= torch.tensor([[1e-3], [3.0], [1e3]])
    close(head(1e3 * features()), expected)


def test_cosine_can_do_without_a_bias() -> None:
    head = cosine.build(WIDTH, STATS, bias=False)
    assert head.bias is None
    assert "bias" not in head.state_dict()
    assert head(features()).abs().max() <= 1


@pytest.mark.parametrize(
    ("module", "options", "named"),
    [
        (linear, {"dropout": 1.0}, "dropout is 1.0"),
        (cosine, {"scale": 0.0}, "scale is 0.0"),
        (cosine, {"scale": math.inf}, "scale is inf"),
    ],
)
def test_options_out_of_range_are_refused(module, options, named) -> None:
    with pytest.raises(PluginFault, match=named):
        module.build(WIDTH, STATS, **options)
