"""The features of a frozen backbone on disk: equal to the network's, found again, continued, never torn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_dataset, make_run

from cxrlt_cli.data.augment import augment
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.data.shards import Reader
from cxrlt_cli.engine import features
from cxrlt_cli.engine.features import Frozen, Wanted, backbone_hash, bytes_of, features_of, is_cached, place_of
from cxrlt_cli.engine.infer import Setting
from cxrlt_cli.engine.signals import INTERRUPT, StopRequest
from cxrlt_cli.errors import DataError, Interrupted, TrainingError
from cxrlt_cli.events import Advanced, Event, Started, silent
from cxrlt_cli.model import load_model
from cxrlt_cli.recipe.schema import Augment

COUNT, BATCH = 48, 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", count=COUNT)


@pytest.fixture(scope="module")
def model_file(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", prepared).model


@pytest.fixture
def frozen(prepared: Prepared, model_file: Path, tmp_path: Path) -> Frozen:
    model = load_model(model_file)[0]
    setting = Setting(torch.device("cpu"), prepared.size, BATCH)
    folder = tmp_path / "features"
    return Frozen(model, backbone_hash(model), Reader(prepared), prepared.content_hash, setting, folder)


@pytest.fixture
def wanted() -> Wanted:
    return Wanted("train", np.arange(0, COUNT, 2, dtype=np.int64), "float32")


def pixels(prepared: Prepared, rows: np.ndarray) -> torch.Tensor:
    out = np.empty((len(rows), prepared.size, prepared.size), np.uint8)
    Reader(prepared).read(rows, out)
    return torch.from_numpy(out)[:, None].float() / 255


def steps(found: list[Event]) -> list[int]:
    return [event.done for event in found if isinstance(event, Advanced)]


def test_features_are_those_of_the_network(frozen: Frozen, wanted: Wanted, prepared: Prepared) -> None:
    found = features_of(frozen, wanted, StopRequest(), silent)
    model = frozen.model.eval()
    images = pixels(prepared, wanted.rows)
    with torch.no_grad():
        direct = model.backbone(model.normalise(images)).numpy()
        np.testing.assert_allclose(found, direct, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.head(torch.from_numpy(found)), model(images), rtol=1e-4, atol=1e-4)
    half = features_of(frozen, replace(wanted, dtype="float16"), StopRequest(), silent)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, found, rtol=1e-3, atol=1e-6)


def test_maps_average_to_the_pooled_features(frozen: Frozen, wanted: Wanted) -> None:
    pooled = features_of(frozen, wanted, StopRequest(), silent)
    maps = features_of(frozen, replace(wanted, maps=True), StopRequest(), silent)
    assert maps.ndim == 4
    assert bytes_of(frozen, replace(wanted, maps=True)) == maps.nbytes
    np.testing.assert_allclose(maps.mean((2, 3)), pooled, rtol=1e-4, atol=1e-5)


def test_views_are_drawn_as_training_draws_them(frozen: Frozen, wanted: Wanted, prepared: Prepared) -> None:
    config = Augment(rotate=10, shift=0.1, flip=0.5)
    views = [replace(wanted, view=view, augment=config, seed=3) for view in (0, 1)]
    first, second = (features_of(frozen, view, StopRequest(), silent) for view in views)
    assert not np.allclose(first, second)
    images = augment(
        pixels(prepared, wanted.rows), config, seed=3, epoch=1, step=0, rows=np.arange(len(wanted.rows), dtype=np.int64)
    )
    with torch.no_grad():
        direct = frozen.model.eval().backbone(frozen.model.normalise(images)).numpy()
    np.testing.assert_allclose(second, direct, rtol=1e-3, atol=1e-4)


def test_nothing_of_the_backbone_moves(frozen: Frozen, wanted: Wanted) -> None:
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    assert any("running_mean" in name for name in before), "a network with batch norms, or this test shows nothing"
    frozen.model.train()
    features_of(frozen, wanted, StopRequest(), silent)
    assert frozen.model.training
    for name, value in frozen.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_finished_set_is_found_again(frozen: Frozen, wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array(features_of(frozen, wanted, StopRequest(), silent))
    assert is_cached(frozen, wanted)
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("computed again"))
    again = features_of(frozen, wanted, StopRequest(), silent)
    np.testing.assert_array_equal(again, first)
    again[:] = 0  # the file stays as it is
    np.testing.assert_array_equal(features_of(frozen, wanted, StopRequest(), silent), first)


@pytest.mark.parametrize(
    "change",
    [
        lambda f, w: (f, replace(w, rows=w.rows[::-1].copy())),
        lambda f, w: (f, replace(w, dtype="float16")),
        lambda f, w: (f, replace(w, maps=True)),
        lambda f, w: (f, replace(w, view=0, augment=Augment(flip=0.5))),
        lambda f, w: (replace(f, weights="other"), w),
        lambda f, w: (replace(f, dataset="other"), w),
        lambda f, w: (replace(f, setting=replace(f.setting, size=16)), w),
        lambda f, w: (replace(f, setting=replace(f.setting, precision="bf16")), w),
    ],
    ids=["rows", "dtype", "maps", "view", "weights", "dataset", "size", "precision"],
)
def test_whatever_changes_the_features_changes_their_place(
    frozen: Frozen, wanted: Wanted, change: Callable[[Frozen, Wanted], tuple[Frozen, Wanted]]
) -> None:
    assert place_of(*change(frozen, wanted)) != place_of(frozen, wanted)


def test_views_have_places_of_their_own(frozen: Frozen, wanted: Wanted) -> None:
    drawn = replace(wanted, view=0, augment=Augment(flip=0.5), seed=1)
    others = [replace(drawn, view=1), replace(drawn, seed=2), replace(drawn, augment=Augment(flip=0.6)), wanted]
    assert len({place_of(frozen, each) for each in [drawn, *others]}) == 5


def test_the_batch_size_and_the_name_do_not_matter(frozen: Frozen, wanted: Wanted) -> None:
    other = replace(frozen, setting=replace(frozen.setting, batch_size=3))
    assert place_of(other, replace(wanted, name="other")) == place_of(frozen, wanted)


def test_the_hash_follows_the_backbone_and_not_the_head(frozen: Frozen) -> None:
    model = frozen.model
    with torch.no_grad():
        model.head.weight.add_(1)
        assert backbone_hash(model) == frozen.weights
        running = next(value for name, value in model.backbone.named_buffers() if name.endswith("running_mean"))
        running[0] += 1e-3
        assert backbone_hash(model) != frozen.weights
        running[0] -= 1e-3
        next(model.backbone.parameters()).flatten()[0] += 1e-3
        assert backbone_hash(model) != frozen.weights


def interrupt_after(request: StopRequest, images: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, Advanced) and event.done >= images:
            request.code = INTERRUPT

    return emit


def test_interrupted_and_continued(frozen: Frozen, wanted: Wanted, tmp_path: Path) -> None:
    whole = np.array(features_of(replace(frozen, folder=tmp_path / "whole"), wanted, StopRequest(), silent))
    request = StopRequest()
    # a stop is seen after the batch, when its rows are safe already; the word comes while the first is reported
    with pytest.raises(Interrupted, match="stopped after 8 of 24"):
        features_of(frozen, wanted, request, interrupt_after(request, BATCH))
    place = place_of(frozen, wanted)
    assert json.loads((place / "done.json").read_text()) == {"done": 8}
    assert not is_cached(frozen, wanted)
    events: list[Event] = []
    found = features_of(frozen, wanted, StopRequest(), events.append)
    assert next(event.done for event in events if isinstance(event, Started)) == 8
    assert steps(events) == [16, 24]
    np.testing.assert_array_equal(found, whole)
    assert sorted(path.name for path in place.iterdir()) == ["about.json", "features.npy"]


def unfinished(frozen: Frozen, wanted: Wanted) -> Path:
    request = StopRequest()
    with pytest.raises(Interrupted):
        features_of(frozen, wanted, request, interrupt_after(request, BATCH))
    return place_of(frozen, wanted)


@pytest.mark.parametrize(
    "tear",
    [
        lambda place: (place / "features.npy.part").write_bytes(b"\x93NUMPY torn"),
        lambda place: (place / "features.npy.part").write_bytes((place / "features.npy.part").read_bytes()[:200]),
        lambda place: (place / "features.npy.part").write_bytes(b""),
        lambda place: (place / "done.json").write_text('{"done": '),
        lambda place: (place / "done.json").write_text('{"done": 9999}'),
        lambda place: (place / "done.json").unlink(),
    ],
    ids=["header", "short", "empty", "journal", "beyond", "no journal"],
)
def test_a_torn_part_is_begun_again(
    frozen: Frozen, wanted: Wanted, tmp_path: Path, tear: Callable[[Path], Any]
) -> None:
    whole = np.array(features_of(replace(frozen, folder=tmp_path / "whole"), wanted, StopRequest(), silent))
    tear(unfinished(frozen, wanted))
    events: list[Event] = []
    np.testing.assert_array_equal(features_of(frozen, wanted, StopRequest(), events.append), whole)
    assert steps(events) == [8, 16, 24]


def test_a_cut_file_is_computed_again(frozen: Frozen, wanted: Wanted) -> None:
    whole = np.array(features_of(frozen, wanted, StopRequest(), silent))
    path = place_of(frozen, wanted) / "features.npy"
    path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(features_of(frozen, wanted, StopRequest(), silent), whole)


def test_values_beyond_float16_are_told(frozen: Frozen, wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    true = features._forward
    monkeypatch.setattr(features, "_forward", lambda *given: true(*given) * 1e6)
    with pytest.raises(TrainingError, match="more than float16 holds") as caught:
        features_of(frozen, replace(wanted, dtype="float16"), StopRequest(), silent)
    assert "float32" in caught.value.cure
    assert np.isfinite(features_of(frozen, wanted, StopRequest(), silent)).all()


def test_a_full_disk_is_told_before_work(frozen: Frozen, wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = features.shutil.disk_usage(frozen.folder.parent)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(DataError, match="GB are free") as caught:
        features_of(frozen, wanted, StopRequest(), silent)
    assert "pooled" in caught.value.cure


def test_a_folder_that_cannot_be_made_is_told(frozen: Frozen, wanted: Wanted) -> None:
    frozen.folder.write_text("a file")
    with pytest.raises(DataError, match="cannot be kept"):
        features_of(frozen, wanted, StopRequest(), silent)
