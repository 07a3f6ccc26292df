"""The built-in heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from cxrlt_cli.contracts import ClassStats, PluginFault
from cxrlt_cli.model import set_bias
from cxrlt_plugins.heads import cosine, csra, linear, ml_decoder

STATS = ClassStats(("Effusion", "Mass", "Hernia"), (500, 40, 5), (500, 960, 995))
WIDTH = 8
HEADS = {
    "linear": lambda: linear.build(WIDTH, STATS),
    "linear-paper": lambda: linear.build(WIDTH, STATS, norm=True, dropout=0.5),
    "cosine": lambda: cosine.build(WIDTH, STATS),
    "cosine-16": lambda: cosine.build(WIDTH, STATS, scale=16.0),
    "csra": lambda: csra.build(WIDTH, STATS),
    "csra-heads": lambda: csra.build(WIDTH, STATS, temperatures=(1.0, 2.0, 99.0), norm=True),
    "ml-decoder": lambda: ml_decoder.build(WIDTH, STATS, **SMALL),
    "ml-decoder-groups": lambda: ml_decoder.build(WIDTH, STATS, groups=2, **SMALL),
}
SMALL = {"embedding": 12, "heads": 3, "feedforward": 20}
every_head = pytest.mark.parametrize("build", HEADS.values(), ids=HEADS.keys())


def close(got: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Without ``torch.testing``, whose first call imports half of torch for seconds."""
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)


def features(rows: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def maps(rows: int = 5, seed: int = 0) -> torch.Tensor:
    """Feature maps of 3 x 4 places."""
    return torch.randn(rows, WIDTH, 3, 4, generator=torch.Generator().manual_seed(seed))


def given_to(head: nn.Module) -> torch.Tensor:
    return maps() if getattr(head, "spatial", False) else features()


@every_head
def test_bias_is_a_parameter_added_to_the_logits(build) -> None:
    head = build().eval()
    assert isinstance(head.bias, nn.Parameter)
    assert head.bias.shape == (3,)
    before = head(given_to(head))
    with torch.no_grad():
        head.bias += torch.tensor([1.0, -2.0, 0.5])
    close(head(given_to(head)), before + torch.tensor([1.0, -2.0, 0.5]), rtol=1e-5, atol=1e-6)


@every_head
def test_logits_are_float32_under_autocast_and_not_rounded(build) -> None:
    head = build().eval()
    x = given_to(head).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).any()
    exact = head(x.float())
    if isinstance(head, ml_decoder.MLDecoder):  # only its last step is exact
        close(logits, exact, rtol=0.05, atol=0.01)
    else:
        assert torch.equal(logits, exact)


@every_head
def test_rows_do_not_know_of_each_other(build) -> None:
    head = build().eval()
    x = given_to(head)
    close(head(x), torch.cat([head(row[None]) for row in x]), rtol=1e-4, atol=1e-6)


@every_head
def test_zero_features_give_finite_gradients(build) -> None:
    head = build().eval()
    zeros = torch.zeros_like(given_to(head)).requires_grad_()
    logits = head(zeros)
    if not isinstance(head, ml_decoder.MLDecoder):  # its queries answer to nothing as well
        assert torch.equal(logits, head.bias.expand(logits.shape))
    logits.sum().backward()
    assert zeros.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@every_head
def test_every_parameter_is_saved_and_trained(build) -> None:
    head = build().eval()
    (head(given_to(head)) ** 2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    twin = build().eval()
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin(given_to(head)), head(given_to(head)))


@every_head
def test_the_host_sets_the_first_answer(build) -> None:
    head = build().eval()
    assert set_bias(head, torch.tensor([-1.0, -2.0, -6.0]))
    assert head.bias.tolist() == [-1, -2, -6]


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


# -- csra ----------------------------------------------------------------------------------------------------------


def wide(head: nn.Module, size: float = 1.0) -> nn.Module:
    """The head in float64 with weights large enough for its attention to be uneven."""
    head = head.double().eval()
    with torch.no_grad():
        head.weight.normal_(std=size, generator=torch.Generator().manual_seed(1))
        head.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    return head


def csra_by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, attention: float, temperatures) -> np.ndarray:
    """One image, class and attention after the other: f = mean + lambda * sum_l s_l x_l, logit = w . f."""
    logits = np.tile(bias, (len(x), 1))
    for row, image in enumerate(x):
        places = [image[:, i, j] for i in range(image.shape[1]) for j in range(image.shape[2])]
        for matrix, temperature in zip(weight, temperatures, strict=True):
            for c, w in enumerate(matrix):
                share = np.exp([temperature * w @ place for place in places])
                attended = sum(s * place for s, place in zip(share / share.sum(), places, strict=True))
                logits[row, c] += w @ (np.mean(places, axis=0) + attention * attended)
    return logits


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0, 9.0)])
def test_csra_is_its_formula(temperatures) -> None:
    head = wide(csra.build(WIDTH, STATS, attention=0.3, temperatures=temperatures))
    x = maps().double()
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    expected = csra_by_hand(x.numpy(), weight, bias, 0.3, temperatures)
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-12)


def test_csra_on_one_place_is_a_linear_head() -> None:
    head = wide(csra.build(WIDTH, STATS, attention=0.3, temperatures=(2.0,)))
    x = features().double()
    close(head(x[:, :, None, None]), 1.3 * x @ head.weight[0].T + head.bias, rtol=1e-12)


def test_a_hot_attention_is_the_maximum_and_a_cold_one_the_mean() -> None:
    x = maps().double()
    hot = wide(csra.build(WIDTH, STATS, attention=2.0, temperatures=(1e5,)))
    scores = (x.flatten(2).transpose(1, 2) @ hot.weight[0].T).detach()
    close(hot(x), scores.mean(1) + 2 * scores.amax(1) + hot.bias, rtol=1e-12)
    cold = wide(csra.build(WIDTH, STATS, attention=2.0, temperatures=(1e-9,)))
    close(cold(x), 3 * scores.mean(1) + cold.bias, rtol=1e-6)


def test_csra_without_attention_pools_the_mean() -> None:
    head = wide(csra.build(WIDTH, STATS, attention=0.0))
    close(head(maps().double()), maps().double().mean((2, 3)) @ head.weight[0].T + head.bias, rtol=1e-12)


def test_csra_can_normalise_each_place() -> None:
    head = wide(csra.build(WIDTH, STATS, norm=True))
    x = maps().double()
    scaled = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    plain = wide(csra.build(WIDTH, STATS))
    close(head(x), plain(scaled), rtol=1e-9)


def test_csra_stays_finite_where_scores_are_large() -> None:
    head = wide(csra.build(WIDTH, STATS, temperatures=(99.0,)), size=100.0).float()
    x = (1e3 * maps()).requires_grad_()
    head(x).sum().backward()
    assert x.grad.isfinite().all()


# -- ml-decoder ----------------------------------------------------------------------------------------------------


def decoder(**options) -> nn.Module:
    torch.manual_seed(3)
    head = ml_decoder.build(WIDTH, STATS, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim == 1:  # norms and biases start at 0 and 1, which would hide them
                parameter.add_(0.3 * torch.randn(parameter.shape).double())
            if name == "weight":
                parameter.mul_(50)
    return head


def normalised(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    scale = np.sqrt(x.var() + 1e-5)
    return (x - x.mean()) / scale * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def affine(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()


def attended(head: nn.Module, asked: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
    """Scaled dot-product attention, one head after the other."""
    weights = np.split(head.attend.in_proj_weight.detach().numpy(), 3)
    biases = np.split(head.attend.in_proj_bias.detach().numpy(), 3)
    query = weights[0] @ asked + biases[0]
    keys, values = ([w @ place + b for place in places] for w, b in zip(weights[1:], biases[1:], strict=True))
    found = []
    for part in np.split(np.arange(len(query)), SMALL["heads"]):
        share = np.exp([query[part] @ key[part] / math.sqrt(len(part)) for key in keys])
        found.append(sum(s * value[part] for s, value in zip(share / share.sum(), values, strict=True)))
    return affine(np.concatenate(found), head.attend.out_proj)


def decoded_by_hand(head: nn.Module, image: np.ndarray, groups: int) -> list[float]:
    places = [np.maximum(affine(place, head.embed), 0) for place in image.reshape(WIDTH, -1).T]
    logits = []
    for c, (weight, bias) in enumerate(zip(head.weight.detach().numpy(), head.bias.detach().numpy(), strict=True)):
        asked = normalised(head.queries.numpy()[c * groups // 3], head.before)
        found = normalised(asked + attended(head, asked, places), head.between)
        thought = affine(np.maximum(affine(found, head.widen), 0), head.narrow)
        logits.append(weight @ normalised(found + thought, head.after) + bias)
    return logits


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_ml_decoder_is_its_formula(groups: int) -> None:
    head, x = decoder(groups=groups), maps(2).double()
    expected = [decoded_by_hand(head, image, groups) for image in x.numpy()]
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-9)


def test_ml_decoder_does_not_mind_the_order_of_classes() -> None:
    head, x = decoder(), maps().double()
    before, order = head(x), torch.tensor([2, 0, 1])
    with torch.no_grad():
        for tensor in (head.queries, head.weight, head.bias):
            tensor.copy_(tensor[order].clone())
    close(head(x), before[:, order], rtol=1e-12)


def test_pooling_heads_do_not_mind_the_order_of_places() -> None:
    x = maps().double()
    moved = x.flatten(2)[:, :, torch.randperm(12, generator=torch.Generator().manual_seed(0))].view_as(x)
    for head in (decoder(), wide(csra.build(WIDTH, STATS))):
        close(head(moved), head(x), rtol=1e-10)


def test_classes_share_their_group_s_query_but_not_their_weights() -> None:
    head = ml_decoder.build(WIDTH, ClassStats(tuple("abcdefg"), (1,) * 7, (9,) * 7), groups=3, **SMALL)
    assert head.group.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert head.queries.shape == (3, 12)
    assert head.weight.shape == (7, 12)


def test_queries_are_kept_but_not_trained() -> None:
    head = decoder()
    assert "queries" in head.state_dict()
    assert "queries" not in dict(head.named_parameters())


def test_ml_decoder_drops_in_training_only() -> None:
    head, x = decoder(dropout=0.5), maps().double()
    assert torch.equal(head(x), head(x))
    head.train()
    assert not torch.equal(head(x), head(x))


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "options", "named"),
    [
        (linear, {"dropout": 1.0}, "dropout is 1.0"),
        (cosine, {"scale": 0.0}, "scale is 0.0"),
        (cosine, {"scale": math.inf}, "scale is inf"),
        (csra, {"attention": -0.1}, "attention is -0.1"),
        (csra, {"attention": math.nan}, "attention is nan"),
        (csra, {"temperatures": ()}, r"temperatures is \[\]"),
        (csra, {"temperatures": (1.0, 0.0)}, r"temperatures is \[1.0, 0.0\]"),
        (ml_decoder, {"groups": 0}, "groups is 0"),
        (ml_decoder, {"groups": 4}, "groups is 4"),
        (ml_decoder, {"embedding": 10, "heads": 4}, "embedding is 10 with 4 heads"),
        (ml_decoder, {"heads": 0}, "embedding is 768 with 0 heads"),
        (ml_decoder, {"feedforward": 0}, "feedforward is 0"),
        (ml_decoder, {"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_options_out_of_range_are_refused(module, options, named) -> None:
    with pytest.raises(PluginFault, match=named):
        module.build(WIDTH, STATS, **options)
