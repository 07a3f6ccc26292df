"""Which images stand in which batch, however many processes there are."""

import numpy as np
import pytest

from cxrlt_cli.engine.plan import Plan, epoch_order, epoch_steps, make_plan
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.schema import Train


class Backwards:
    """A sampler that counts down."""

    def __init__(self, count: int) -> None:
        self.count = count

    def indices(self, epoch: int) -> np.ndarray:
        return np.arange(self.count, dtype=np.int64)[::-1]


def plan_of(count: int, batch: int, accumulate: int = 1, processes: int = 1) -> Plan:
    return make_plan(Backwards(count), Train(batch_size=batch, accumulate=accumulate), processes)


def test_images_left_over_wait_for_another_shuffle() -> None:
    plan = plan_of(103, 10)
    assert plan.steps == 10
    assert plan.total == 10 * Train().epochs


def test_a_batch_larger_than_an_epoch_is_refused() -> None:
    with pytest.raises(UsageError, match="more than the 7 training images"):
        plan_of(7, 8)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be shared out over 2 accumulation steps and 3 processes"):
        plan_of(100, 16, accumulate=2, processes=3)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_global_batch_does_not_depend_on_how_it_is_cut(processes: int, accumulate: int) -> None:
    sampler, plan = Backwards(64), Plan(batch=16, accumulate=accumulate, epochs=1, steps=4)
    whole = epoch_order(sampler, plan, 0).reshape(4, 16)
    cut = [epoch_steps(sampler, plan, 0, rank, processes) for rank in range(processes)]
    for index in range(4):
        steps = [steps[index] for steps in cut]
        chunks = [chunk for step in steps for chunk in step.chunks]
        places = np.concatenate([chunk.places for chunk in chunks])
        items = np.concatenate([chunk.items for chunk in chunks])
        assert sorted(places) == list(range(16))
        np.testing.assert_array_equal(whole[index][places], items)
        assert all(len(step.chunks) == accumulate for step in steps)
        for step in steps:
            np.testing.assert_array_equal(step.items, whole[index])


def test_draws_that_fill_no_batch_are_left_out() -> None:
    order = epoch_order(Backwards(11), Plan(batch=4, accumulate=1, epochs=1, steps=2), 0)
    np.testing.assert_array_equal(order, [10, 9, 8, 7, 6, 5, 4, 3])


@pytest.mark.parametrize("count", [7, 12])
def test_an_epoch_of_another_length_is_refused(count: int) -> None:
    with pytest.raises(PluginError, match=f"draws {count} images in epoch 4, which are not 2 batches of 4"):
        epoch_order(Backwards(count), Plan(batch=4, accumulate=1, epochs=9, steps=2), 3)


def test_steps_are_numbered_over_the_whole_run() -> None:
    plan = Plan(batch=2, accumulate=1, epochs=3, steps=4)
    assert [step.number for step in epoch_steps(Backwards(8), plan, 2, 0, 1)] == [8, 9, 10, 11]
