"""The sampler of a run and what it is expected to draw, in numbers and as it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories import make_dataset

from cxrlt_cli.commands.expected import Expectation, as_table, drawn, expectation
from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.engine.parts import Rows, link_at
from cxrlt_cli.engine.plan import Plan
from cxrlt_cli.engine.sampling import Draws, build_sampler, expected_draws, preference
from cxrlt_cli.errors import PluginError
from cxrlt_cli.recipe.schema import Data, Model, PluginRef, Recipe, Train
from cxrlt_cli.registry import build

LABELS = np.array([[1, 0, 0]] * 8 + [[1, 1, 0]] * 2 + [[0, 0, -1]] * 10, np.int8)
STATS = ClassStats(("Effusion", "Mass", "Hernia"), (10, 2, 0), (10, 18, 10))


class Halves:
    """Draws every second image twice, and says so when asked."""

    def indices(self, epoch: int) -> np.ndarray:
        return np.repeat(np.arange(0, 20, 2), 2) + epoch % 2


class Open(Halves):
    def expected(self, epoch: int) -> np.ndarray:
        return np.tile([2.0, 0.0] if epoch % 2 == 0 else [0.0, 2.0], 10)


def test_patients_are_handed_over_as_codes() -> None:
    names = [f"p{i // 4}" for i in range(20)]
    sampler = build_sampler({"name": "uniform", "cap": 2}, LABELS, STATS, names, seed=0, epochs=3)
    assert np.bincount(sampler.indices(0) // 4).tolist() == [2] * 5


def test_what_a_sampler_refuses_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match="cap is 0"):
        build_sampler({"name": "uniform", "cap": 0}, LABELS, STATS, ["p"] * 20, seed=0, epochs=3)


def test_expected_positives_and_ratios() -> None:
    draws = expected_draws(Open(), LABELS, Plan(batch=5, accumulate=1, epochs=2, steps=4), 0)
    assert draws.images.tolist() == [2, 0] * 10
    assert draws.positives.tolist() == [10, 2, 0]
    np.testing.assert_array_equal(draws.ratio, [1, 1, np.nan])


def test_the_draws_of_the_last_part_of_a_batch_do_not_count() -> None:
    draws = expected_draws(Open(), LABELS, Plan(batch=8, accumulate=1, epochs=2, steps=2), 1)
    assert draws.images.tolist() == [0, 1.6] * 10
    np.testing.assert_allclose(draws.positives, [8, 1.6, 0])
    np.testing.assert_allclose(draws.ratio[:2], [1, 1])


def test_a_sampler_that_does_not_say_what_it_expects_is_counted() -> None:
    draws = expected_draws(Halves(), LABELS, Plan(batch=5, accumulate=1, epochs=2, steps=4), 0)
    assert draws.images.tolist() == [1] * 20  # of twenty epochs, half draw the even images


def test_expected_draws_are_those_of_the_epochs_of_a_run() -> None:
    sampler = build_sampler("class-aware", LABELS, STATS, [f"p{i}" for i in range(20)], seed=0, epochs=3)
    plan = Plan(batch=4, accumulate=1, epochs=3, steps=5)
    draws = expected_draws(sampler, LABELS, plan, 0)
    made = np.concatenate([sampler.indices(epoch) for epoch in range(2000)])
    # Mass: 1/2 + 1/2 * 2/10 of 20 draws; Effusion is on all of them
    np.testing.assert_allclose(draws.positives, [20, 12, 0], atol=1e-6)
    np.testing.assert_allclose(draws.ratio[:2], [2, 6], atol=1e-6)
    np.testing.assert_allclose((LABELS[made] == 1).sum(0) / 2000, draws.positives, atol=0.05)


# -- as it is shown ------------------------------------------------------------------------------------------------


def recipe_for(path: Path, sampler: PluginRef) -> Recipe:
    return Recipe(
        name="r",
        data=Data(path=str(path)),
        model=Model(backbone=PluginRef(name="timm", model="test_convnext2")),
        sampler=sampler,
        train=Train(epochs=3, batch_size=8),
    )


def test_nothing_is_said_of_a_sampler_that_draws_every_image_once(tmp_path: Path) -> None:
    prepared = make_dataset(tmp_path / "data")
    assert expectation(recipe_for(tmp_path / "data", PluginRef(name="uniform")), prepared) is None
    assert drawn(None) == {}


def test_the_cap_of_a_patient_is_seen(tmp_path: Path) -> None:
    prepared = make_dataset(tmp_path / "data")
    free = expectation(recipe_for(tmp_path / "data", PluginRef(name="class-aware")), prepared)
    capped = expectation(recipe_for(tmp_path / "data", PluginRef(name="class-aware", cap=3)), prepared)
    assert free is not None
    assert capped is not None
    assert free.busiest > 3
    assert capped.busiest == pytest.approx(3)
    assert free.steady


def test_a_sampler_that_changes_shows_its_first_and_its_last_epoch(tmp_path: Path) -> None:
    prepared = make_dataset(tmp_path / "data")
    found = expectation(recipe_for(tmp_path / "data", PluginRef(name="progressive")), prepared)
    assert found is not None
    np.testing.assert_allclose(found.first.images, 1)
    assert as_table(found, short=False).columns == ("finding", "positives", "first epoch", "last epoch", "x its share")
    for row in drawn(found)["draws"]["classes"]:
        assert row["first_epoch"] == {"positives": row["positives"], "ratio": 1}


def expectation_of(count: int) -> Expectation:
    """Classes with 10, 20, ... positives; the first one has none."""
    positives = np.arange(count) * 10.0
    draws = Draws(np.array([0.0, 2.5, 97.5]), positives * 3, np.where(positives > 0, 3.0, np.nan))
    stats = ClassStats(tuple(f"c{n}" for n in range(count)), tuple(range(0, 10 * count, 10)), (100,) * count)
    return Expectation("class-aware", stats, draws, draws, 98.0)


def test_the_short_table_leaves_out_the_middle() -> None:
    table = as_table(expectation_of(30), short=True)
    assert [row[0] for row in table.rows] == [*(f"c{n}" for n in range(6)), "...", *(f"c{n}" for n in range(26, 30))]
    assert table.rows[0] == ("c0", "0", "0", "-")
    assert table.rows[-1] == ("c29", "290", "870", "3.00")
    assert "100 images an epoch" in table.note
    assert "an image comes 97.5 times, a patient 98.0 times; 1 of 3 are never drawn" in table.note
    assert "30 classes" in table.note
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(as_table(expectation_of(30), short=False).rows) == 30
    assert len(as_table(expectation_of(11), short=True).rows) == 11


def test_data_holds_every_class_in_its_order() -> None:
    data = drawn(expectation_of(30))["draws"]
    assert [row["class"] for row in data["classes"]] == [f"c{n}" for n in range(30)]
    assert data["classes"][0]["last_epoch"] == {"positives": 0, "ratio": None}
    assert (data["sampler"], data["images"], data["never_drawn"]) == ("class-aware", 100, 1)


def test_the_preference_of_a_sampler_by_hand() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, -1, 0]], np.int8)
    draws = Draws(np.array([3.0, 1.0, 0.5, 1.5]), np.zeros(3), np.zeros(3))
    # class 0: (3 + 1) / 2 against (0.5 + 1.5) / 2; class 1: 3 against (1 + 0.5) / 2; class 2 has no positive
    np.testing.assert_allclose(preference(draws, labels), [2.0, 4.0, 1.0])


def test_the_link_takes_the_preference_of_the_sampler_back() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 3)) < (0.5, 0.1, 0.02)).astype(np.int8)
    stats = ClassStats(("a", "b", "c"), tuple(labels.sum(axis=0).tolist()), tuple((1 - labels).sum(axis=0).tolist()))
    rows = Rows(np.arange(400), np.arange(0), labels, labels[:0], stats)
    plan, owners = Plan(40, 1, 2, 10), [str(row) for row in range(400)]
    recipe = Recipe(data=Data(path="."), model=Model(backbone=PluginRef(name="timm")))
    loss = build("losses", "bce", stats)
    for name, changed in (("uniform", False), ("class-aware", True)):
        sampler = build_sampler(name, labels, stats, owners, seed=0, epochs=2)
        link = link_at(loss, rows, recipe, sampler=sampler, plan=plan, step=0)
        assert link is not None
        wanted = -np.log(preference(expected_draws(sampler, labels, plan, 0), labels))
        np.testing.assert_allclose(link.log_odds_of(np.zeros((1, 3)))[0], wanted, atol=1e-4)
        assert (abs(wanted[2]) > 1) == changed
