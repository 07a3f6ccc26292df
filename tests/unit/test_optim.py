"""The schedule, the parameter groups, the optimiser and averaged weights."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn

from cxrlt_cli import optim
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.schema import Ema, Optim


class Net(nn.Module):
    """Three layers with a norm and a position embedding, numbered as ``contracts.Backbone`` offers."""

    depth = 3

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 5, 1, bias=False)

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def layer_of(self, name: str) -> int:
        return {"position": 0, "stem": 0, "norm": 1, "last": 2}[name.split(".", maxsplit=1)[0]]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.last(self.norm(self.stem(images + self.position)))
        return features.mean((2, 3))


def rates(groups: list[dict[str, object]], *modules: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by parameter name; fails where a parameter is in no group or in two."""
    names = {id(p): name for module in modules for name, p in module.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["base_lr"], group["weight_decay"])
    assert set(found) == set(names.values())
    return found


# --- schedule


def curve(total: int, warmup: float, final: float) -> list[float]:
    return [optim.lr_factor(step, total, warmup, final) for step in range(total)]


@pytest.mark.parametrize("total", [2, 3, 10, 997])
@pytest.mark.parametrize("final", [0.0, 0.01, 0.3, 1.0])
def test_cosine_starts_at_one_and_ends_at_final_exactly(total: int, final: float) -> None:
    factors = curve(total, 0.0, final)
    assert factors[0] == 1.0
    assert factors[-1] == final


def test_cosine_equals_torch() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=49, eta_min=0.05)
    expected = []
    for _ in range(50):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert curve(50, 0.0, 0.05) == pytest.approx(expected, abs=1e-12)


def test_warmup_is_linear_and_reaches_one_at_its_end() -> None:
    factors = curve(100, 0.1, 0.0)
    assert factors[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert factors[10] == 1.0
    assert factors[-1] == 0.0
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_warmup_shorter_than_half_a_step_is_none() -> None:
    assert curve(9, 0.05, 0.5) == curve(9, 0.0, 0.5)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_run_of_one_step_has_the_whole_rate(warmup: float) -> None:
    assert curve(1, warmup, 0.0) == [1.0]


def test_run_that_is_all_warmup_ends_at_one() -> None:
    assert curve(4, 1.0, 0.0) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("step", [-1, 5])
def test_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is outside a run of 5 steps"):
        optim.lr_factor(step, 5, 0.1, 0.0)


def test_docstring_examples_run() -> None:
    assert doctest.testmod(optim) == (0, 1)


# --- parameter groups


def test_norms_biases_and_named_parameters_are_not_decayed() -> None:
    net, head = Net(), nn.Linear(5, 2)
    found = rates(optim.parameter_groups(net, head, Optim(lr=1e-3, weight_decay=0.1)), net, head)
    assert {name for name, (_, decay) in found.items() if decay == 0} == {
        *("position", "stem.bias", "norm.weight", "norm.bias", "bias"),
    }
    assert {decay for _, decay in found.values()} == {0.0, 0.1}
    assert {lr for lr, _ in found.values()} == {1e-3}


def test_head_has_a_rate_of_its_own() -> None:
    net, head = Net(), nn.Linear(5, 2)
    found = rates(optim.parameter_groups(net, head, Optim(lr=1e-4, head_lr=1e-2)), net, head)
    assert {name for name, (lr, _) in found.items() if lr == 1e-2} == {"weight", "bias"}


def test_layers_nearer_the_image_learn_slower() -> None:
    net, head = Net(), nn.Linear(5, 2)
    found = rates(optim.parameter_groups(net, head, Optim(lr=1.0, layer_decay=0.5)), net, head)
    assert {name: lr for name, (lr, _) in found.items()} == {
        **{"weight": 1.0, "bias": 1.0, "last.weight": 0.5, "norm.weight": 0.25, "norm.bias": 0.25},
        **{"stem.weight": 0.125, "stem.bias": 0.125, "position": 0.125},
    }


def test_layer_decay_needs_numbered_layers() -> None:
    with pytest.raises(UsageError, match=r"layer_decay is 0\.9, but the backbone Linear does not number") as caught:
        optim.parameter_groups(nn.Linear(2, 2), nn.Linear(2, 2), Optim(layer_decay=0.9))
    assert caught.value.cure.startswith("Set optim.layer_decay to 1")


def test_backbone_without_layers_is_fine_without_layer_decay() -> None:
    body, head = nn.Linear(2, 3), nn.Linear(3, 2, bias=False)
    assert len(optim.parameter_groups(body, head, Optim())) == 3


def test_layer_outside_the_depth_is_the_plugins_fault() -> None:
    net = Net()
    net.depth = 2
    with pytest.raises(PluginError, match=r"layer_of\('last.weight'\) is 2, outside a depth of 2"):
        optim.parameter_groups(net, nn.Linear(5, 2), Optim(layer_decay=0.9))


def test_shared_parameter_is_in_one_group() -> None:
    body, head = nn.Linear(3, 3), nn.Linear(3, 3)
    head.weight = body.weight
    groups = optim.parameter_groups(body, head, Optim(lr=1e-4, head_lr=1e-2))
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) == 3
    assert next(g for g in groups if any(p is body.weight for p in g["params"]))["name"] == "backbone"


def test_frozen_parameters_are_left_out() -> None:
    net, head = Net().requires_grad_(False), nn.Linear(5, 2)
    groups = optim.parameter_groups(net, head, Optim())
    assert {group["name"] for group in groups} == {"head"}


# --- optimiser


def test_optimiser_takes_one_adamw_step() -> None:
    body, head = nn.Linear(2, 2), nn.Linear(2, 2)
    config = Optim(lr=0.1, weight_decay=0.5, betas=[0.8, 0.9])
    optimizer = optim.build_optimizer(optim.parameter_groups(body, head, config), config, "cpu")
    before = body.weight.detach().clone()
    for parameter in (*body.parameters(), *head.parameters()):
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    # the first step of Adam is one rate in the direction of the gradient; the decay is decoupled (arXiv 1711.05101)
    torch.testing.assert_close(body.weight.detach(), before * (1 - 0.1 * 0.5) - 0.1)


def test_optimiser_is_fused_on_a_cpu() -> None:
    config = Optim()
    optimizer = optim.build_optimizer(optim.parameter_groups(Net(), nn.Linear(5, 2), config), config, "cpu")
    assert all(group["fused"] for group in optimizer.param_groups)


def test_set_lr_scales_every_group_from_its_base() -> None:
    config = Optim(lr=1e-3, head_lr=1e-2)
    optimizer = optim.build_optimizer(optim.parameter_groups(Net(), nn.Linear(5, 2), config), config, "cpu")
    for factor in (0.5, 0.25):
        optim.set_lr(optimizer, factor)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * factor, 1e-2 * factor}


def step_once(net: Net, head: nn.Linear, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    head(net(images)).square().sum().backward()
    optimizer.step()


def test_moments_saved_in_another_memory_layout_continue_bitwise() -> None:
    """The fused CPU kernel walks memory: contiguous moments beside channels-last weights would be mixed up."""
    config = Optim(lr=0.1)
    net, head = Net().to(memory_format=torch.channels_last), nn.Linear(5, 2)
    optimizer = optim.build_optimizer(optim.parameter_groups(net, head, config), config, "cpu")
    step_once(net, head, optimizer, 0)
    saved = optimizer.state_dict()
    saved["state"] = {
        key: {name: value.detach().clone().contiguous() for name, value in state.items()}
        for key, state in saved["state"].items()
    }
    other, other_head = Net(), nn.Linear(5, 2)
    other.load_state_dict(net.state_dict())
    other_head.load_state_dict(head.state_dict())
    other.to(memory_format=torch.channels_last)
    resumed = optim.build_optimizer(optim.parameter_groups(other, other_head, config), config, "cpu")
    resumed.load_state_dict(saved)
    assert other.stem.weight.stride() != other.stem.weight.contiguous().stride()
    step_once(net, head, optimizer, 1)
    step_once(other, other_head, resumed, 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


# --- averaged weights


def test_decay_warms_up() -> None:
    config = Ema(decay=0.9)
    assert [optim.ema_decay(step, config) for step in (0, 1, 8, 80, 10_000)] == [0.1, 2 / 11, 0.5, 0.9, 0.9]


def test_decay_without_warmup_is_constant() -> None:
    assert optim.ema_decay(0, Ema(decay=0.9, warmup=False)) == 0.9


def test_average_follows_the_recursion() -> None:
    module = nn.Linear(1, 1, bias=False)
    config = Ema(decay=0.3)
    values = [1.0, 5.0, -2.0, 4.0]
    nn.init.constant_(module.weight, values[0])
    average, expected = optim.ema_start(module), values[0]
    for step, value in enumerate(values[1:]):
        nn.init.constant_(module.weight, value)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        optim.ema_update(average, module, optim.ema_decay(step, config))
    assert average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    norm = nn.BatchNorm1d(2)
    average = optim.ema_start(norm)
    norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    optim.ema_update(average, norm, 0.75)
    assert set(average) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    torch.testing.assert_close(average["running_mean"], 0.25 * norm.running_mean)
    torch.testing.assert_close(average["running_var"], 0.75 + 0.25 * norm.running_var)
    assert average["num_batches_tracked"].item() == 1
    assert average["num_batches_tracked"].dtype == torch.int64


def test_module_of_counters_alone_has_an_average() -> None:
    module = nn.Module()
    module.register_buffer("count", torch.tensor(1))
    average = optim.ema_start(module)
    module.count += 4
    optim.ema_update(average, module, 0.5)
    assert average["count"].item() == 5


def test_average_does_not_share_memory_or_gradients() -> None:
    module = nn.Linear(2, 2)
    average = optim.ema_start(module)
    with torch.no_grad():
        module.weight.add_(1)
    assert not torch.equal(average["weight"], module.weight)
    assert not any(value.requires_grad for value in average.values())


def test_model_holds_the_average_while_swapped_and_is_restored_bitwise() -> None:
    net = Net()
    average = optim.ema_start(net)
    step_once(net, head := nn.Linear(5, 2), torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1), 0)
    optim.ema_update(average, net, 0.9)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    averaged = {name: value.clone() for name, value in average.items()}
    with optim.ema_swapped(net, average):
        assert all(torch.equal(value, averaged[name]) for name, value in net.state_dict().items())
        assert all(torch.equal(value, trained[name]) for name, value in average.items())
    assert all(torch.equal(value, trained[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, averaged[name]) for name, value in average.items())


def test_swap_keeps_tied_weights_right_and_survives_an_exception() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    module = nn.Sequential(first, second)
    average = optim.ema_start(module)
    assert set(average) == {"0.weight", "0.bias", "1.bias"}
    with torch.no_grad():
        first.weight.add_(1)
    trained = first.weight.detach().clone()

    def fail_while_swapped() -> None:
        with optim.ema_swapped(module, average):
            torch.testing.assert_close(first.weight.detach(), trained - 1)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        fail_while_swapped()
    assert torch.equal(first.weight, trained)


def test_swap_without_an_average_does_nothing() -> None:
    module = nn.Linear(1, 1)
    before = module.weight.detach().clone()
    with optim.ema_swapped(module, None):
        assert torch.equal(module.weight, before)


# --- sharpness-aware minimisation


def test_parameters_climb_rho_along_the_gradient_and_come_back_bitwise() -> None:
    net, head = Net(), nn.Linear(5, 2)
    both = nn.ModuleList([net, head])
    head(net(torch.randn(2, 3, 6, 6))).square().sum().backward()
    head.bias.grad = None  # a parameter the loss did not reach stays where it is
    before = {name: value.detach().clone() for name, value in both.named_parameters()}
    gradients = {name: value.grad.clone() for name, value in both.named_parameters() if value.grad is not None}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()

    def look_and_fail() -> None:
        with optim.ascended(both, 0.05):
            for name, value in both.named_parameters():
                step = 0.05 * gradients[name] / norm if name in gradients else 0
                torch.testing.assert_close(value.detach(), before[name] + step)
            raise RuntimeError("the second pass failed")

    with pytest.raises(RuntimeError, match="second pass"):
        look_and_fail()
    assert all(torch.equal(value, before[name]) for name, value in both.named_parameters())


def test_without_a_slope_nothing_moves() -> None:
    module = nn.Linear(2, 2)
    module(torch.zeros(1, 2)).sum().mul(0).backward()
    before = module.weight.detach().clone()
    with optim.ascended(module, 0.05):
        assert torch.equal(module.weight, before)


def test_a_scaled_gradient_leads_to_the_same_place() -> None:
    found = []
    for scale in (1.0, 65536.0):
        module = nn.Linear(2, 1, bias=False)
        nn.init.constant_(module.weight, 1.0)
        (module(torch.tensor([[3.0, 4.0]])) * scale).sum().backward()
        with optim.ascended(module, 0.5):
            found.append(module.weight.detach().clone())
    torch.testing.assert_close(found[0], torch.tensor([[1.3, 1.4]]))
    torch.testing.assert_close(found[1], found[0])


def test_buffers_come_back() -> None:
    norm = nn.BatchNorm1d(2)
    norm(torch.randn(4, 2))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    with optim.unchanged_buffers(norm):
        norm(torch.randn(4, 2))
        assert not torch.equal(norm.running_mean, before["running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
