from __future__ import annotations

import pytest
import torch

from cxrlt_cli import registry
from cxrlt_cli.contracts import TestTimeAugmentation


def build(name: str) -> TestTimeAugmentation:
    return registry.build("tta", name)


@pytest.mark.parametrize("name", ["none", "flip"])
def test_the_first_view_is_the_image_itself_and_needs_nothing(name: str) -> None:
    images = torch.rand(3, 1, 8, 8)
    first = build(name).views[0]
    assert torch.equal(first.apply(images), images)
    assert first.needs == frozenset()


def test_none_has_one_view() -> None:
    assert len(build("none").views) == 1


def test_flip_exchanges_left_and_right() -> None:
    images = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 1, 3, 4)
    mirrored = build("flip").views[1].apply(images)
    assert torch.equal(mirrored[0, 0, 0], torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert torch.equal(mirrored.flip(3), images)


def test_flip_leaves_its_input_alone() -> None:
    images = torch.rand(2, 1, 4, 4)
    before = images.clone()
    build("flip").views[1].apply(images).zero_()
    assert torch.equal(images, before)


def test_flip_needs_a_network_that_saw_flips() -> None:
    assert build("flip").views[1].needs == {"flip"}


def test_flip_averages_logits() -> None:
    assert (build("flip").space, build("flip").merge) == ("logit", "mean")
