"""What every installed plugin keeps to, whoever wrote it: the promises of ``cxrlt_cli.contracts``, kind by kind."""

from __future__ import annotations

import csv
import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cxrlt_cli import registry
from cxrlt_cli.contracts import GROUPS, ClassStats, Loss, PrepareRequest, Preprocess, TestTimeAugmentation
from cxrlt_cli.errors import DataError
from cxrlt_cli.posterior import derive
from cxrlt_cli.registry import Plugin

#: Options a plugin cannot do without, or that keep the tests quick.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "cxrlt:timm": {"model": "resnet10t", "pretrained": False},
    "cxrlt:phantom": {"count": 200},
}
STATS = ClassStats(("Effusion", "Mass", "Hernia"), (500, 40, 5), (480, 960, 995))
ROWS, CLASSES, WIDTH = 12, 3, 16
PATIENTS = np.arange(50, dtype=np.int64) // 2


def every(*kinds: str) -> Any:
    """Parametrize over every installed plugin of these kinds."""
    found = [plugin for kind in kinds for plugin in registry.available(kind)]
    return pytest.mark.parametrize("plugin", found, ids=lambda plugin: f"{plugin.kind}-{plugin.qualified}")


def make(plugin: Plugin, *host: object) -> Any:
    """Build a plugin as the host does; skipped where it needs options nobody can guess."""
    options = NEEDED.get(plugin.qualified, {})
    required = {option.name for option in registry.options_of(plugin.kind, plugin.qualified) if option.required}
    if required - set(options):
        pytest.skip(f"{plugin} needs the options {', '.join(sorted(required - set(options)))}")
    return registry.build(plugin.kind, {"name": plugin.qualified, **options}, *host)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Several threads on small tensors mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- every kind --------------------------------------------------------------------------------------------------


@every(*GROUPS)
def test_it_loads_and_its_options_are_well_formed(plugin: Plugin) -> None:
    registry.resolve(plugin.kind, plugin.qualified)
    registry.options_model(plugin.kind, plugin.qualified)


@every(*GROUPS)
def test_it_says_what_it_does(plugin: Plugin) -> None:
    assert inspect.getdoc(registry.resolve(plugin.kind, plugin.qualified))


@every(*GROUPS)
def test_an_unknown_option_is_refused(plugin: Plugin) -> None:
    assert registry.option_problems(plugin.kind, {"name": plugin.qualified, "no_such_option": 1})


def test_the_built_in_plugins_are_there() -> None:
    names = {kind: {plugin.name for plugin in registry.available(kind)} for kind in GROUPS}
    assert {"bce", "asl", "ldam"} <= names["losses"]
    assert {"linear", "cosine", "csra", "ml-decoder"} <= names["heads"]
    assert {"csv", "phantom"} <= names["datasets"]
    assert {"none", "flip"} <= names["tta"]
    assert "timm" in names["backbones"]
    assert {"uniform", "class-aware", "root", "progressive", "repeat-factor"} <= names["samplers"]


# -- losses ------------------------------------------------------------------------------------------------------


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 2, (ROWS, CLASSES)), dtype=dtype)
    targets = torch.tensor(rng.integers(0, 2, (ROWS, CLASSES)), dtype=dtype)
    return logits, targets, torch.tensor(rng.uniform(0.2, 3, (ROWS, CLASSES)), dtype=dtype)


def gradient(loss: Loss, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, targets, weight).backward()
    assert logits.grad is not None
    return logits.grad


@every("losses")
def test_a_loss_is_a_scalar_and_a_module(plugin: Plugin) -> None:
    loss = make(plugin, STATS)
    assert isinstance(loss, Loss)
    assert isinstance(loss, nn.Module)
    assert loss(*batch()).shape == ()


@every("losses")
def test_a_loss_takes_every_floating_type(plugin: Plugin) -> None:
    loss = make(plugin, STATS)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        value = loss(*batch(dtype))
        assert value.dtype in {torch.float32, torch.float64}
        assert torch.isfinite(value)


@every("losses")
def test_a_loss_stays_finite_far_out(plugin: Plugin) -> None:
    loss, (_, targets, weight) = make(plugin, STATS), batch(torch.float32)
    for size in (30.0, 1e3):
        logits = torch.full((ROWS, CLASSES), size) * torch.tensor([1.0, -1.0, 1.0])
        assert torch.isfinite(loss(logits, targets, weight))
        assert torch.isfinite(gradient(loss, logits, targets, weight)).all()


@every("losses")
def test_unknown_labels_do_not_count(plugin: Plugin) -> None:
    loss, (logits, targets, weight) = make(plugin, STATS), batch()
    weight[::2, 1] = 0
    targets[::2, 1] = -1
    other = targets.clone()
    other[::2, 1] = float("nan")
    assert torch.equal(loss(logits, targets, weight), loss(logits, other, weight))
    assert not gradient(loss, logits, targets, weight)[::2, 1].any()


@every("losses")
def test_no_known_label_is_zero(plugin: Plugin) -> None:
    loss, (logits, targets, weight) = make(plugin, STATS), batch()
    assert loss(logits, targets, 0 * weight).item() == 0
    assert not gradient(loss, logits, targets, 0 * weight).any()


@every("losses")
def test_the_sum_is_divided_by_the_count_of_known_entries(plugin: Plugin) -> None:
    loss, (logits, targets, weight) = make(plugin, STATS), batch()
    if not getattr(loss, "pointwise", True):
        pytest.skip("the loss is not pointwise")
    whole = loss(logits, targets, weight) * ROWS * CLASSES
    rows = [loss(logits[i : i + 1], targets[i : i + 1], weight[i : i + 1]) * CLASSES for i in range(ROWS)]
    assert torch.allclose(whole, torch.stack(rows).sum())
    assert torch.allclose(loss(logits, targets, 2 * weight), 2 * loss(logits, targets, weight))


@every("losses")
def test_the_slope_leads_towards_the_label(plugin: Plugin) -> None:
    loss = make(plugin, STATS)
    logits = torch.linspace(-8, 8, 65, dtype=torch.float64)[:, None].repeat(1, CLASSES)
    ones = torch.ones_like(logits)
    assert (gradient(loss, logits, ones, ones) <= 0).all()
    assert (gradient(loss, logits, 0 * ones, ones) >= 0).all()


@every("losses")
def test_a_loss_does_not_change_its_input(plugin: Plugin) -> None:
    loss, given = make(plugin, STATS), batch()
    kept = [tensor.clone() for tensor in given]
    loss(*given)
    assert all(torch.equal(one, other) for one, other in zip(given, kept, strict=True))


@every("losses")
def test_a_pointwise_loss_has_a_rising_posterior_link(plugin: Plugin) -> None:
    loss = make(plugin, STATS)
    link = derive(loss, np.ones(CLASSES), np.ones(CLASSES))
    if link is None:
        pytest.skip("the loss is not pointwise")
    posterior = link.posterior(np.linspace(-6, 6, 25)[:, None].repeat(CLASSES, axis=1))
    assert ((posterior >= 0) & (posterior <= 1)).all()
    assert (np.diff(posterior, axis=0) >= 0).all()


def test_the_link_of_the_example_is_the_identity() -> None:
    brier = [plugin for plugin in registry.available("losses") if plugin.name == "brier"]
    if not brier:
        pytest.skip("plugins/example is not installed")
    link = derive(make(brier[0], STATS), np.ones(CLASSES), np.ones(CLASSES))
    assert link is not None
    logits = np.linspace(-8, 8, 33)[:, None].repeat(CLASSES, axis=1)
    np.testing.assert_allclose(link.log_odds_of(logits), logits, atol=1e-3)


# -- heads, backbones --------------------------------------------------------------------------------------------


@every("heads")
def test_a_head_maps_features_to_logits(plugin: Plugin) -> None:
    head = make(plugin, WIDTH, STATS)
    shape = (ROWS, WIDTH, 4, 5) if getattr(head, "spatial", False) else (ROWS, WIDTH)
    features = torch.randn(shape, requires_grad=True)
    logits = head.eval()(features)
    assert logits.shape == (ROWS, CLASSES)
    logits.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@every("heads")
def test_the_bias_of_a_head_is_added_to_its_logits(plugin: Plugin) -> None:
    head = make(plugin, WIDTH, STATS).eval()
    if getattr(head, "bias", None) is None:
        pytest.skip("the head has no bias")
    assert head.bias.shape == (CLASSES,)
    features = torch.randn((ROWS, WIDTH, 4, 5) if getattr(head, "spatial", False) else (ROWS, WIDTH))
    with torch.no_grad():
        before = head(features)
        head.bias += torch.tensor([1.0, 2.0, 3.0])
        moved = head(features) - before
    assert torch.allclose(moved, torch.tensor([1.0, 2.0, 3.0]).expand_as(moved), atol=1e-4)


@every("backbones")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_backbone_pools_and_maps(plugin: Plugin, channels: int) -> None:
    backbone = make(plugin, channels, 64).eval()
    assert isinstance(backbone.preprocess, Preprocess)
    assert len(backbone.preprocess.mean) == len(backbone.preprocess.std) == channels
    images = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert backbone(images).shape == (2, backbone.width)
        assert backbone.feature_map(images).shape[:2] == (2, backbone.width)


@every("backbones")
def test_the_layers_of_a_backbone_cover_its_parameters(plugin: Plugin) -> None:
    backbone = make(plugin, 1, 64)
    if not hasattr(backbone, "layer_of"):
        pytest.skip("the backbone offers no layers")
    layers = [backbone.layer_of(name) for name, _ in backbone.named_parameters()]
    assert min(layers) == 0
    assert max(layers) <= backbone.depth - 1


# -- samplers, test-time augmentation ----------------------------------------------------------------------------


def labels(rows: int = 50) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.random.default_rng(0).integers(-1, 2, (rows, CLASSES)).astype(np.int8)


@every("samplers")
def test_an_order_is_pure_in_seed_and_epoch(plugin: Plugin) -> None:
    first, again = make(plugin, labels(), STATS, PATIENTS, 7, 4), make(plugin, labels(), STATS, PATIENTS, 7, 4)
    later = first.indices(5)
    first.indices(0)
    for order in (first.indices(5), again.indices(5)):
        assert np.array_equal(order, later)


@every("samplers")
def test_an_order_holds_positions(plugin: Plugin) -> None:
    order = make(plugin, labels(), STATS, PATIENTS, 7, 4).indices(0)
    assert order.dtype == np.int64
    assert order.ndim == 1
    assert len(order)
    assert order.min() >= 0
    assert order.max() < 50


@every("samplers")
def test_epochs_are_equally_long(plugin: Plugin) -> None:
    sampler = make(plugin, labels(), STATS, PATIENTS, 7, 4)
    assert len({len(sampler.indices(epoch)) for epoch in range(8)}) == 1


@every("samplers")
def test_expected_draws_are_those_made(plugin: Plugin) -> None:
    sampler = make(plugin, labels(), STATS, PATIENTS, 7, 4)
    if not hasattr(sampler, "expected"):
        pytest.skip("the sampler does not say what it expects")
    made = [make(plugin, labels(), STATS, PATIENTS, seed, 4).indices(2) for seed in range(400)]
    expected = sampler.expected(2)
    assert expected.shape == (50,)
    assert expected.sum() == pytest.approx(len(made[0]))
    mean = np.bincount(np.concatenate(made), minlength=50) / len(made)
    # an image drawn k times an epoch at most k + 1 times has a standard error below 0.025 sqrt(k + 1)
    assert (abs(mean - expected) < 0.13 * np.sqrt(expected + 1)).all()


@every("samplers")
def test_orders_differ(plugin: Plugin) -> None:
    samplers = [make(plugin, labels(), STATS, PATIENTS, seed, 4) for seed in range(2)]
    orders = [sampler.indices(epoch) for sampler in samplers for epoch in range(2)]
    assert len({tuple(order) for order in orders}) == 4


@every("tta")
def test_views_begin_with_the_identity_and_keep_shape_and_range(plugin: Plugin) -> None:
    views = make(plugin)
    assert isinstance(views, TestTimeAugmentation)
    assert len({view.name for view in views.views}) == len(views.views)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    assert torch.equal(views.views[0].apply(images), images)
    for view in views.views:
        seen = view.apply(images)
        assert seen.shape == images.shape
        assert seen.min() >= 0
        assert seen.max() <= 1
        assert torch.equal(view.apply(images), seen)
        assert torch.allclose(torch.cat([view.apply(image[None]) for image in images]), seen)
    assert torch.equal(images, kept)


# -- datasets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(tmp_path: Path) -> list[PrepareRequest]:
    """A small table with its images, for sources that read files; nothing, for sources that draw."""
    images = tmp_path / "images"
    images.mkdir()
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "Effusion", "Mass"])
        for number in range(6):
            Image.fromarray(np.full((20, 20), 30 * number, np.uint8)).save(images / f"i{number}.png")
            writer.writerow([f"i{number}.png", f"p{number // 2}", number % 2, "" if number == 3 else 0])
    return [PrepareRequest(images, tmp_path / "labels.csv", 64, 0), PrepareRequest(None, None, 64, 0)]


def source_of(plugin: Plugin, requests: Sequence[PrepareRequest]) -> Any:
    for request in requests:
        try:
            return make(plugin, request)
        except DataError as error:
            reason = str(error)
    pytest.skip(f"{plugin} neither reads this table nor draws: {reason}")


@every("datasets")
def test_the_table_of_a_source_is_whole(plugin: Plugin, requests: list[PrepareRequest]) -> None:
    table = source_of(plugin, requests).table
    count = len(table.image_id)
    assert table.labels.shape == (count, len(table.classes))
    assert table.labels.dtype == np.int8
    assert set(np.unique(table.labels)) <= {-1, 0, 1}
    assert len(set(table.image_id)) == count
    assert all(isinstance(name, str) and name for name in [*table.image_id, *table.patient_id, *table.classes])
    for column in (table.patient_id, table.path, table.study_id, table.view, table.split, *table.extra.values()):
        assert column is None or len(column) == count
    assert set(table.view or ()) <= {"PA", "AP", "lateral", ""}
    assert set(table.split or ()) <= {"train", "dev", "test"}


@every("datasets")
def test_patients_of_a_source_stay_together(plugin: Plugin, requests: list[PrepareRequest]) -> None:
    table = source_of(plugin, requests).table
    if table.split is None:
        pytest.skip("the host splits")
    assert len(set(zip(table.patient_id, table.split, strict=True))) == len(set(table.patient_id))


@every("datasets")
def test_a_source_that_draws_is_pure_and_can_be_pickled(plugin: Plugin, requests: list[PrepareRequest]) -> None:
    source = source_of(plugin, requests)
    if source.table.path is not None:
        pytest.skip("the images of this source are files")
    sent = pickle.loads(pickle.dumps(source))
    for index in (0, len(source.table.image_id) - 1):
        image = source.draw(index)
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        assert np.array_equal(sent.draw(index), image)


@every("datasets")
def test_a_source_refuses_absent_files_with_a_cure(plugin: Plugin, tmp_path: Path) -> None:
    nothing = PrepareRequest(tmp_path / "absent", tmp_path / "absent.csv", 64, 0)
    with pytest.raises(DataError) as caught:
        make(plugin, nothing)
    assert caught.value.what
    assert caught.value.cure
