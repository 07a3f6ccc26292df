"""Merging views, against formulas written out, SciPy, and cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from cxrlt_cli.contracts import PluginFault, TestTimeAugmentation, View
from cxrlt_cli.engine.merge import merge
from cxrlt_cli.posterior import Link

IDENTITY = View("identity", lambda images: images)
OTHER = View("other", lambda images: images)
CLASSES = ("left", "right")
#: Log-odds of "left" are the logit, of "right" twice the logit less 1.
LINK = Link(np.array([-50.0, 0.0, 50.0]), np.array([[-50.0, 0.0, 50.0], [-101.0, -1.0, 99.0]]))

Floats = npt.NDArray[np.float64]


def tta(*views: View, **settings: str) -> TestTimeAugmentation:
    named = [replace(view, name=f"view {number}") for number, view in enumerate(views)]
    return TestTimeAugmentation((IDENTITY, *named), **settings)  # type: ignore[arg-type]


def logits_of(views: int, rows: int = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(views, rows, 2)).astype(np.float32)


def merged(logits: Any, *, link: Link | None = None, projections: list[str] | None = None, **settings: str) -> Floats:
    """Merge V views that are valid everywhere."""
    values = np.asarray(logits, np.float32)
    strategy = tta(*[OTHER] * (len(values) - 1), **settings)
    return merge(values, strategy, CLASSES, projections or [""] * values.shape[1], link)


def columns(*views: list[float]) -> npt.NDArray[np.float32]:
    """(V, N, 2) logits: the same numbers for both classes."""
    return np.repeat(np.array(views, np.float32)[..., None], 2, axis=2)


def test_one_view_stays_exactly_as_it_is() -> None:
    logits = logits_of(1)
    np.testing.assert_array_equal(merge(logits, tta(), CLASSES, [""] * 5, LINK), logits[0])


@pytest.mark.parametrize("views", [2, 3, 4, 5])
@pytest.mark.parametrize("how", ["mean", "median", "max"])
def test_logits_merge(how: str, views: int) -> None:
    logits = logits_of(views)
    found = merged(logits, merge=how)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, getattr(np, how)(logits.astype(np.float64), axis=0), rtol=1e-6)


def posterior(values: Any, link: Link | None) -> Floats:
    """By the definition of the link above."""
    z = np.asarray(values, np.float64)
    return special.expit(z if link is None else z * [1, 2] - [0, 1])


@pytest.mark.parametrize("link", [LINK, None])
@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("how", ["mean", "median", "max"])
def test_posteriors_merge_and_come_back_as_logits(how: str, views: int, link: Link | None) -> None:
    logits = logits_of(views)
    found = merged(logits, link=link, space="posterior", merge=how)
    np.testing.assert_allclose(posterior(found, link), getattr(np, how)(posterior(logits, link), axis=0), rtol=1e-5)


@pytest.mark.parametrize("link", [LINK, None])
def test_the_geometric_mean_is_normalised_with_that_of_the_complement(link: Link | None) -> None:
    logits = logits_of(3)
    p = posterior(logits, link)
    g, h = stats.gmean(p, axis=0), stats.gmean(1 - p, axis=0)
    found = merged(logits, link=link, space="posterior", merge="geometric")
    np.testing.assert_allclose(posterior(found, link), g / (g + h), rtol=1e-5)


def test_the_geometric_mean_by_hand() -> None:
    """Odds 1 : 4 and 9 : 1 have the geometric mean 3 : 2."""
    found = merged(columns([math.log(1 / 4)], [math.log(9)]), space="posterior", merge="geometric")
    np.testing.assert_allclose(special.expit(found), 3 / 5, rtol=1e-6)


def test_the_mean_posterior_by_hand() -> None:
    """The mean of 1/5 and 9/10 is 11/20; the mean logit of the same views means 3/5."""
    logits = columns([math.log(1 / 4)], [math.log(9)])
    np.testing.assert_allclose(special.expit(merged(logits, space="posterior")), 11 / 20, rtol=1e-6)
    np.testing.assert_allclose(special.expit(merged(logits)), 3 / 5, rtol=1e-6)


def test_a_geometric_mean_of_logits_is_refused() -> None:
    with pytest.raises(PluginFault, match="posteriors"):
        tta(OTHER, merge="geometric")


def test_views_of_one_name_are_refused() -> None:
    with pytest.raises(PluginFault, match="names of their own"):
        TestTimeAugmentation((IDENTITY, IDENTITY))


@pytest.mark.parametrize("how", ["mean", "median", "max", "geometric"])
@pytest.mark.parametrize("link", [LINK, None])
@pytest.mark.parametrize("low", [-45, 40])
def test_extreme_posteriors_keep_their_order_and_their_value(how: str, link: Link | None, low: float) -> None:
    """At +-40 the posterior rounds to 0 or 1; equal views still merge to themselves."""
    logits = np.tile(np.linspace(low, low + 5, 6, dtype=np.float32)[None, :, None], (2, 1, 2))
    found = merged(logits, link=link, space="posterior", merge=how)
    np.testing.assert_allclose(found, logits[0], rtol=1e-6)


def test_the_mean_posterior_far_out_is_that_of_exact_fractions() -> None:
    """exp(-100) and exp(-101): the mean of the posteriors is about that of the odds."""
    found = merged(columns([-100.0, 100.0], [-101.0, 101.0]), space="posterior")
    by_hand = math.log((math.exp(-100) + math.exp(-101)) / 2)
    np.testing.assert_allclose(found[:, 0], [by_hand, -by_hand], rtol=1e-6)


# -- ranks ---------------------------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    """Places 1 2 3 4 and 4 1 2 3: means 2.5 1.5 2.5 3.5, so the first and third share the logits in the middle."""
    found = merged(columns([0.0, 1.0, 2.0, 9.0], [8.0, -3.0, 0.0, 5.0]), merge="rank")
    np.testing.assert_array_equal(found[:, 0], [1.5, 0.0, 1.5, 9.0])


def test_ties_within_a_view_share_their_place() -> None:
    """Places 1.5 1.5 3 and 2 1 3: means 1.75 1.25 3."""
    found = merged(columns([1.0, 1.0, 4.0], [6.0, 5.0, 7.0]), merge="rank")
    np.testing.assert_array_equal(found[:, 1], [1.0, 1.0, 4.0])
    found = merged(columns([5.0, 6.0, 7.0], [1.0, 1.0, 4.0]), merge="rank")
    np.testing.assert_array_equal(found[:, 1], [5.0, 6.0, 7.0])


def test_the_order_is_that_of_scipys_mean_rank_and_the_values_are_the_identitys() -> None:
    logits = np.round(np.random.default_rng(3).normal(size=(4, 300, 2)), 1).astype(np.float32)
    found = merged(logits, merge="rank")
    for index in range(2):
        total = sum(stats.rankdata(view[:, index]) for view in logits)
        own = np.sort(logits[0, :, index])
        by_hand = [own[np.flatnonzero(np.sort(total) == place)].mean() for place in total]
        np.testing.assert_allclose(found[:, index], by_hand, rtol=1e-6, atol=1e-7)


def test_equal_views_rank_to_the_identity() -> None:
    logits = np.tile(np.float32([0.1, 0.3, 0.1, 0.7, 0.2, 0.1])[None, :, None], (7, 1, 2))
    np.testing.assert_array_equal(merged(logits, merge="rank"), logits[0])


@pytest.mark.parametrize("space", ["logit", "posterior"])
@pytest.mark.parametrize("how", ["rank", "max"])
def test_ranks_and_maxima_are_the_same_in_both_spaces(how: str, space: str) -> None:
    logits = logits_of(3, 40)
    np.testing.assert_array_equal(merged(logits, link=LINK, space=space, merge=how), merged(logits, merge=how))


def test_a_view_ranks_the_images_it_is_valid_for_among_their_own_places() -> None:
    """The view turns the order of the frontal images (places 1, 3, 4) round; the lateral one keeps place 2."""
    view = replace(OTHER, projections=frozenset({"PA"}))
    logits = columns([10.0, 20.0, 30.0, 40.0], [3.0, 99.0, 2.0, 1.0])
    found = merge(logits, tta(view, merge="rank"), CLASSES, ["PA", "lateral", "PA", "PA"], None)
    # mean places (1 + 4) / 2, 2, (3 + 3) / 2, (4 + 1) / 2
    np.testing.assert_array_equal(found[:, 0], [25.0, 10.0, 40.0, 25.0])


@pytest.mark.parametrize("how", ["mean", "median", "max", "geometric", "rank"])
@pytest.mark.parametrize("rows", [0, 1])
def test_no_image_and_a_single_one(how: str, rows: int) -> None:
    found = merged(logits_of(2, rows), space="posterior", merge=how)
    assert found.shape == (rows, 2)
    if how == "rank":
        np.testing.assert_array_equal(found, logits_of(2, rows)[0])


# -- validity ------------------------------------------------------------------------------------------------------

SETTINGS = [
    {"space": space, "merge": how}
    for space in ("logit", "posterior")
    for how in ("mean", "median", "max", "geometric", "rank")
    if (space, how) != ("logit", "geometric")
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: "-".join(given.values()))
def test_a_view_counts_for_its_classes_only(settings: dict[str, str]) -> None:
    logits = logits_of(3)
    view = replace(OTHER, classes=frozenset({"left"}))
    found = merge(logits, tta(view, view, **settings), CLASSES, [""] * 5, LINK)
    np.testing.assert_array_equal(found[:, 0], merged(logits, link=LINK, **settings)[:, 0])
    np.testing.assert_array_equal(found[:, 1], logits[0, :, 1])


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: "-".join(given.values()))
def test_an_invalid_view_may_say_anything(settings: dict[str, str]) -> None:
    logits, view = logits_of(3), replace(OTHER, projections=frozenset({"PA"}))
    projections = ["PA", "lateral", "PA", "AP", ""]
    strategy = tta(view, OTHER, **settings)
    before = merge(logits, strategy, CLASSES, projections, LINK)
    for nonsense in (np.nan, np.inf, -np.inf, 1e30):
        logits[1, [1, 3]] = nonsense
        np.testing.assert_array_equal(merge(logits, strategy, CLASSES, projections, LINK), before)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: "-".join(given.values()))
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_a_valid_view_is_never_hidden(settings: dict[str, str], wrong: float) -> None:
    logits = logits_of(3)
    logits[2, 4, 1] = wrong
    found = merged(logits, link=LINK, **settings)
    assert np.argwhere(np.isnan(found)).tolist() == [[4, 1]]


def test_a_view_counts_for_its_projections_and_for_unknown_ones() -> None:
    logits = logits_of(2)
    view = replace(OTHER, projections=frozenset({"PA", "AP"}))
    found = merge(logits, tta(view), CLASSES, ["PA", "lateral", "", "AP", "lateral"], LINK)
    both = [0, 2, 3]
    np.testing.assert_allclose(found[both], logits[:, both].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found[[1, 4]], logits[0, [1, 4]])


def test_the_median_of_an_even_number_of_valid_views() -> None:
    """Views 1, 3, 7 and one that stands aside: 3; views 1, 3 and two aside: 2."""
    logits = columns([1.0, 1.0], [3.0, 3.0], [7.0, 100.0], [50.0, 100.0])
    left, pa = replace(OTHER, classes=frozenset()), replace(OTHER, projections=frozenset({"PA"}))
    found = merge(logits, tta(OTHER, pa, left, merge="median"), CLASSES, ["PA", "AP"], None)
    np.testing.assert_array_equal(found[:, 0], [3.0, 2.0])


def test_the_mean_of_posteriors_is_exact_where_fractions_are() -> None:
    odds = [Fraction(1, 3), Fraction(1), Fraction(7)]
    mean = sum(value / (1 + value) for value in odds) / 3
    found = merged(columns(*([math.log(value)] for value in odds)), space="posterior")
    np.testing.assert_allclose(special.expit(found.astype(np.float64)), float(mean), rtol=1e-6)
