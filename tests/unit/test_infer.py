from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import View
from cxrlt_cli.engine.infer import IDENTITY, Setting, infer
from cxrlt_cli.events import Advanced, Event, Finished, Started

CPU = torch.device("cpu")
MIRROR = View("mirror", lambda images: images.flip(-1))


class Stored:
    """Random images in memory."""

    def __init__(self, count: int, size: int = 8) -> None:
        self.size = size
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        out[:] = self.pixels[rows]


class Columns(nn.Module):
    """Logits: the mean intensity of each column; remembers the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.dropout(images.mean((1, 2)))


def expected(images: Stored, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return images.pixels[rows].astype(np.float64).mean(1) / 255


def test_every_row_once_in_the_order_asked_for() -> None:
    images, rows = Stored(11), np.array([7, 0, 10, 3, 3, 9, 1], np.int64)
    logits = infer(Columns(), images, rows, Setting(CPU, 8, 3))
    assert logits.shape == (1, 7, 8)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], expected(images, rows), atol=1e-6)


def test_the_batch_size_changes_nothing() -> None:
    images, rows = Stored(10), np.arange(10)
    once, thrice = (infer(Columns(), images, rows, Setting(CPU, 8, size)) for size in (10, 3))
    np.testing.assert_allclose(once, thrice, rtol=1e-6)


def test_views_come_one_after_the_other_in_the_result() -> None:
    images, rows = Stored(5), np.arange(5)
    logits = infer(Columns(), images, rows, Setting(CPU, 8, 4), views=(IDENTITY, MIRROR, IDENTITY))
    np.testing.assert_allclose(logits[0], expected(images, rows), atol=1e-6)
    np.testing.assert_allclose(logits[1], logits[0][:, ::-1], atol=1e-6)
    np.testing.assert_array_equal(logits[2], logits[0])


@pytest.mark.parametrize(
    ("images", "batch_size", "passes"),
    [(8, 4, [4] * 6), (5, 4, [4, 4, 4, 3]), (6, 4, [4, 4, 4, 4, 2]), (2, 6, [6]), (1, 2, [2, 1]), (1, 1, [1, 1, 1])],
)
def test_views_share_a_pass_where_they_fit_into_a_batch(images: int, batch_size: int, passes: list[int]) -> None:
    model = Columns()
    setting = Setting(CPU, 8, batch_size)
    logits = infer(model, Stored(images), np.arange(images), setting, views=(IDENTITY, MIRROR, IDENTITY))
    assert model.batches == passes
    np.testing.assert_allclose(logits[1], expected(Stored(images), np.arange(images))[:, ::-1], atol=1e-6)


def test_images_are_read_once_for_all_views() -> None:
    images, read = Stored(5), []

    class Counted(Stored):
        def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
            read.extend(rows.tolist())
            super().read(rows, out)

    infer(Columns(), Counted(5), np.arange(5), Setting(CPU, images.size, 2), views=(IDENTITY, MIRROR, MIRROR))
    assert read == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_evaluates_and_is_left_as_it_was(training: bool) -> None:
    images, model = Stored(4), Columns().train(training)
    logits = infer(model, images, np.arange(4), Setting(CPU, 8, 4))
    np.testing.assert_allclose(logits[0], expected(images, np.arange(4)), atol=1e-6)
    assert model.training is training
    assert model.dropout.training is training


def test_the_network_is_left_as_it_was_after_a_failure() -> None:
    class Broken(Columns):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="no"):
        infer(model, Stored(4), np.arange(4), Setting(CPU, 8, 4))
    assert model.training


def test_images_are_resized_to_what_the_network_sees() -> None:
    logits = infer(Columns(), Stored(4, size=16), np.arange(4), Setting(CPU, 8, 4))
    assert logits.shape == (1, 4, 8)


def test_half_precision_comes_back_as_float32() -> None:
    class Projected(Columns):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(8, 2)
            self.seen: list[torch.dtype] = []

        def forward(self, images: Tensor) -> Tensor:
            logits = self.head(images.mean((1, 2)))
            self.seen.append(logits.dtype)
            return logits

    model = Projected()
    exact = infer(model, Stored(4), np.arange(4), Setting(CPU, 8, 4))
    half = infer(model, Stored(4), np.arange(4), Setting(CPU, 8, 4, "bf16"))
    assert model.seen == [torch.float32, torch.bfloat16]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=0.02)


def test_views_are_made_in_full_precision() -> None:
    seen: list[bool] = []

    def apply(images: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return images

    infer(Columns(), Stored(2), np.arange(2), Setting(CPU, 8, 2, "bf16"), views=(View("watch", apply),))
    assert seen == [False]


def test_no_rows_have_no_logits_but_classes() -> None:
    logits = infer(Columns(), Stored(2), np.arange(0), Setting(CPU, 8, 2), views=(IDENTITY, MIRROR))
    assert logits.shape == (2, 0, 8)


def test_progress_counts_images() -> None:
    events: list[Event] = []
    infer(Columns(), Stored(7), np.arange(7), Setting(CPU, 8, 3, stage="dev"), emit=events.append)
    assert events[0] == Started("dev", 7)
    assert [event.done for event in events if isinstance(event, Advanced)] == [3, 6, 7]
    assert events[-1] == Finished("dev")
