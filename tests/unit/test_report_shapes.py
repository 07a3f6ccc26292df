"""The numbers behind the drawings of an evaluation, and the drawings themselves."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from judged import judged
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from cxrlt_cli.report.curves import Panel, Rare, interval_bar, linear, log_odds, long_tail
from cxrlt_cli.report.mistakes import IN_A_GROUP, OF_A_CLASS, confusions, worst
from cxrlt_cli.report.panels import reliability_panel
from cxrlt_cli.report.shapes import MOST_STEPS, at_thresholds, precision_over_recall, reliability, wilson


def drawn(count: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, -1], count, p=[0.6, 0.3, 0.1]).astype(np.int8)
    scores = rng.normal(size=count) + labels
    return labels, scores.round(1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [12, 150, 3000])
def test_the_area_below_precision_is_average_precision(count: int, ties: bool) -> None:
    labels, scores = drawn(count, ties=ties)
    steps, known = precision_over_recall(labels, scores), labels >= 0
    assert len(steps.heights) <= MOST_STEPS
    assert steps.edges[0] == 0
    assert steps.edges[-1] == 1
    area = float((np.diff(steps.edges) * steps.heights).sum())
    assert area == pytest.approx(average_precision_score(labels[known] == 1, scores[known]), abs=1e-12)


def test_without_positives_there_is_no_curve() -> None:
    labels, scores = np.zeros(5, np.int8), np.arange(5.0)
    assert not len(precision_over_recall(labels, scores).heights)
    assert not len(at_thresholds(labels, scores / 5).f1)


@pytest.mark.parametrize(("hits", "images"), [(0, 30), (3, 40), (25, 25), (1, 2)])
def test_wilson_is_scipys(hits: int, images: int) -> None:
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    assert wilson(hits, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bins_of_reliability_hold_every_known_image() -> None:
    labels, scores = drawn(400)
    posteriors = 1 / (1 + np.exp(-scores))
    bins, known = reliability(labels, posteriors), labels >= 0
    assert bins.images.sum() == known.sum()
    assert bins.images.max() - bins.images.min() <= 1
    assert (bins.share * bins.images).sum() == pytest.approx((labels == 1).sum())
    assert (bins.posterior * bins.images).sum() == pytest.approx(posteriors[known].sum())
    assert (np.diff(bins.posterior) > 0).all()
    assert ((bins.low <= bins.share) & (bins.share <= bins.high)).all()


def test_equal_posteriors_are_one_bin() -> None:
    bins = reliability(np.array([0, 1] * 100, np.int8), np.full(200, 0.3))
    assert bins.images.tolist() == [200]
    assert bins.share.tolist() == [0.5]


def test_figures_over_thresholds_are_scikit_learns() -> None:
    labels, scores = drawn(300, ties=True)
    posteriors, known = 1 / (1 + np.exp(-scores)), labels >= 0
    curves = at_thresholds(labels, posteriors)
    for k in range(0, len(curves.thresholds), 6):
        called, truth = posteriors[known] >= curves.thresholds[k], labels[known] == 1
        assert curves.f1[k] == pytest.approx(f1_score(truth, called, zero_division=0))
        assert curves.recall[k] == pytest.approx(recall_score(truth, called))
        if called.any():
            assert curves.precision[k] == pytest.approx(precision_score(truth, called))
        else:
            assert math.isnan(curves.precision[k])


# -- errors --------------------------------------------------------------------------------------------------------


def test_the_worst_errors_are_errors_and_few_of_a_class() -> None:
    one = judged()
    found = worst(one)
    assert {mistake.kind for mistake in found} == {"false alarm", "miss"}
    for mistake in found:
        alarm = mistake.kind == "false alarm"
        assert one.decisions[mistake.row, mistake.c] == alarm
        assert one.labels[mistake.row, mistake.c] == (0 if alarm else 1)
        assert one.result.group[mistake.c] == mistake.group
    places = [(mistake.group, mistake.kind) for mistake in found]
    assert max(places.count(place) for place in set(places)) <= IN_A_GROUP
    of_classes = [(mistake.kind, mistake.c) for mistake in found]
    assert max(of_classes.count(each) for each in of_classes) == OF_A_CLASS


def test_the_worst_false_alarm_has_the_highest_posterior() -> None:
    one = judged()
    wrong = np.where((one.labels == 0) & one.decisions, one.posteriors, 0)[:, 0]
    own = [mistake for mistake in worst(one) if (mistake.c, mistake.kind) == (0, "false alarm")]
    assert [mistake.row for mistake in own] == np.argsort(-wrong)[:OF_A_CLASS].tolist()


def test_confusions_by_hand() -> None:
    labels = np.array([[0, 1, 0], [0, 1, -1], [0, 0, 1], [1, 1, 0], [0, 0, 0]], np.int8)
    called = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
    names, shares = ("a", "b", "c"), (0.2, 0.5, 0.2)
    one = judged(names, shares, count=5, resamples=2)
    one = judged(
        names, shares, count=5, resamples=2, labels=labels, decisions=called, order=[0, 1, 2], result=one.result
    )
    found = confusions(one)
    assert found.alarms.tolist() == [3, 0, 0]
    np.testing.assert_allclose(found.shares[0], [np.nan, 2 / 3, 1 / 2])  # of three, one without a label of c
    np.testing.assert_allclose(found.usual[0], [np.nan, 2 / 4, 1 / 3])
    assert np.isnan(found.shares[1:]).all()
    assert found.nothing[0] == 0
    assert not found.likely.any()  # two of three are no more than chance where one in two is usual


def test_sources_of_false_alarms_are_no_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((400, 4), np.int8)
    called = np.zeros((400, 4), bool)
    called[:40, 0] = called[:1, 1] = True
    labels[:20, 1] = labels[380:, 1] = 1  # 20 of 40, usually 40 of 400
    labels[:5, 2] = labels[360:, 2] = 1  # 5 of 40, usually 45 of 400
    labels[0, 3] = 1  # one of 40
    one = judged(tuple("abcd"), (0.1,) * 4, count=400, resamples=2)
    order = rng.permutation(400)
    one = judged(
        tuple("abcd"), (0.1,) * 4, count=400, resamples=2, labels=labels[order], decisions=called[order],
        order=[0, 1, 2, 3], result=one.result,
    )  # fmt: skip
    assert np.argwhere(confusions(one).likely).tolist() == [[0, 1]]


def test_few_images_have_a_dot_before_calibration() -> None:
    one = judged(tuple("abc"), (0.3,) * 3, count=60, resamples=2)
    drawing, note = reliability_panel(one, 2)  # 20 known labels make one bin
    assert drawing.count('<circle class="s1"') == 1
    assert "before" in note
    assert '<circle class="s1"' not in reliability_panel(one, 0)[0]


# -- drawings ------------------------------------------------------------------------------------------------------


def test_log_odds_are_even_about_one_half() -> None:
    axis = log_odds("x")
    assert axis.place(0.5) == 0.5
    assert axis.place(0.001) == pytest.approx(0)
    assert axis.place(0.0) == pytest.approx(0)
    assert axis.place(1.0) == pytest.approx(1)
    assert axis.place(0.9) == pytest.approx(1 - axis.place(0.1))


def test_a_point_lies_where_its_values_say() -> None:
    panel = Panel(linear("x"), linear("y"))
    corners = [(float(panel.x(x)), float(panel.y(y))) for x, y in ((0, 0), (1, 1), (0.5, 0.5))]
    assert corners[2] == pytest.approx(((corners[0][0] + corners[1][0]) / 2, (corners[0][1] + corners[1][1]) / 2))
    assert panel.steps([0, 0.5, 1], [1, 0], "l0").count("H") == 2
    assert panel.line([(0, 0)], "l0") == ""


def test_labels_of_an_axis_keep_apart() -> None:
    """A letter of 10 px is about 6 px wide; the point is narrower."""
    for axis in (linear("x"), log_odds("x")):
        drawn = Panel(axis, linear("y")).drawn([], "")
        found = re.findall(r'x="([\d.]+)" y="\d+" text-anchor="middle">([\d.]+)<', drawn)
        spans = [(float(x) - 3 * len(text), float(x) + 3 * len(text)) for x, text in found]
        assert [text for _, text in found] == [f"{tick:g}".lstrip("0") or "0" for tick in axis.ticks]
        assert all(left[1] < right[0] for left, right in pairwise(spans))


def test_the_long_tail_stands_in_the_order_of_prevalence() -> None:
    rows = [Rare(f"<{share}>", share, 0.5, 0.4, 0.6, share, "<says>") for share in (0.0, 0.003, 0.05, 0.5)]
    drawing = long_tail([*rows, Rare("absent", 0.1, math.nan, math.nan, math.nan, math.nan, "")])
    places = [float(x) for x in re.findall(r'<circle class="s0" cx="([\d.]+)%"', drawing)]
    assert len(places) == 4
    assert places == sorted(places)
    assert "<says>" not in drawing
    assert "&lt;0.05&gt;" in drawing


def test_a_tail_without_classes_has_room_for_its_name() -> None:
    drawing = long_tail([Rare("a", 0.3, 0.5, 0.4, 0.6, 0.3, ""), Rare("b", 0.02, 0.5, 0.4, 0.6, 0.02, "")])
    band = re.search(r'class="band0" x="[\d.]+%" y="0" width="([\d.]+)%"', drawing)
    assert band
    assert float(band[1]) > 10


def test_an_interval_is_as_wide_as_it_says() -> None:
    assert 'x="20.0%" y="4" width="50.0%"' in interval_bar(0.4, 0.2, 0.7, 0.1)
    assert interval_bar(math.nan, math.nan, math.nan) == ""
    assert 'height="4"' not in interval_bar(0.4, math.nan, math.nan)
