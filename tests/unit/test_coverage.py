"""Do 95 % intervals hold the truth 95 % of the time? Simulated patients, scores whose true figures are known.

A patient has one to four images. Findings and scores of one patient are alike: a label is the patient's own seven times
in ten, and half the variance of a score is the patient's. Scores are normal, with a mean higher by ``SHIFT`` where the
finding is present. Posteriors have the log-odds ``SLOPE * true + OFFSET``; a finding is called from ``CALLED`` on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit
from scipy.stats import norm, sem
from scipy.stats import t as student_t

from cxrlt_cli.bootstrap import Replicates, Resampled, interval, paired, replicates
from cxrlt_cli.metrics import BINS, PER_CLASS, Evaluation, auroc, evaluate

Array = npt.NDArray[np.float64]
SHIFT, CALLED = 1.5, 0.35


@dataclass(frozen=True)
class World:
    """Where patients come from."""

    prevalence: tuple[float, ...] = (0.4, 0.2, 0.1)
    patients: int = 350
    slope: float = 0.6
    offset: float = 0.3

    @property
    def names(self) -> list[str]:
        return [str(c) for c in range(len(self.prevalence))]


class Sample(NamedTuple):
    labels: npt.NDArray[np.int8]
    scores: Array
    posteriors: Array
    patients: npt.NDArray[np.int64]


USUAL = World()
RARE = World((0.1, 0.03, 0.01), 400)
RESERVED = World((0.92, 0.5, 0.05), 300, slope=1.3, offset=-0.5)
LONG_TAIL = World(tuple(np.geomspace(0.3, 0.004, 30).tolist()), 800)


def simulate(world: World, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(world.patients), rng.integers(1, 5, world.patients))
    prevalence = np.array(world.prevalence)
    shape = (len(patient), len(prevalence))
    own = rng.random((world.patients, shape[1])) < prevalence
    labels = np.where(rng.random(shape) < 0.7, own[patient], rng.random(shape) < prevalence)
    alike = rng.normal(size=(world.patients, shape[1]))[patient]
    scores = SHIFT * labels + math.sqrt(0.5) * (alike + rng.normal(size=shape))
    return Sample(labels.astype(np.int8), scores, posterior(world, scores, prevalence)[1], patient)


def posterior(world: World, scores: Array, prevalence: Array | float) -> tuple[Array, Array]:
    """The true posterior of a score, and the one that is claimed."""
    log_odds = np.log(prevalence / (1 - np.asarray(prevalence))) + SHIFT * (scores - SHIFT / 2)
    return expit(log_odds), expit(world.slope * log_odds + world.offset)


def truth(world: World) -> tuple[dict[str, Array], dict[str, float]]:
    """Every figure of every class, and of all together, by sums over a fine grid of scores."""
    grid = np.linspace(-10, 10 + SHIFT, 100_001)
    step, recall, false_rate = grid[1] - grid[0], norm.sf(grid - SHIFT), norm.sf(grid)
    found: dict[str, list[float]] = {name: [] for name in PER_CLASS}
    flat, hits, calls = np.zeros(BINS), np.zeros(2), np.zeros(2)
    for share in world.prevalence:
        precision = share * recall / (share * recall + (1 - share) * false_rate)
        found["ap"].append(float(-(np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum()))
        found["auroc"].append(norm.cdf(SHIFT / math.sqrt(2)))
        density = (share * norm.pdf(grid - SHIFT) + (1 - share) * norm.pdf(grid)) * step
        right, claimed = posterior(world, grid, share)
        hit, called = (
            np.array([(density * part * (claimed >= at)).sum() for at in (CALLED, 0.5)]) for part in (right, 1.0)
        )
        hits, calls = hits + hit, calls + called
        f1, at_half = 2 * hit / (called + share)
        found["f1"].append(f1)
        found["f1_at_half"].append(at_half)
        found["precision"].append(hit[0] / called[0])
        found["recall"].append(hit[0] / share)
        found["brier"].append(float((density * (right * (1 - claimed) ** 2 + (1 - right) * claimed**2)).sum()))
        found["slope"].append(1 / world.slope)
        found["intercept"].append(-world.offset / world.slope)
        equal_count = np.minimum((np.cumsum(density) * BINS).astype(int), BINS - 1)
        found["ece"].append(float(np.abs(np.bincount(equal_count, density * (right - claimed))).sum()))
        equal_width = np.clip(np.ceil(claimed * BINS).astype(int) - 1, 0, BINS - 1)
        flat += np.bincount(equal_width, density * (right - claimed), minlength=BINS) / len(world.prevalence)
    overall = {f"macro_{name}": float(np.mean(values)) for name, values in found.items()}
    micro = 2 * hits / (calls + sum(world.prevalence))
    overall |= {"micro_f1": micro[0], "micro_f1_at_half": micro[1], "ece": float(np.abs(flat).sum())}
    return {name: np.array(values) for name, values in found.items()}, overall


def measure(world: World, seed: int, resamples: int) -> tuple[Evaluation, Replicates]:
    one = simulate(world, seed)
    decisions = one.posteriors >= CALLED
    result = evaluate(one.labels, one.scores, one.posteriors, world.names, world.prevalence, decisions=decisions)
    made = replicates(
        one.labels,
        one.scores,
        one.patients,
        posteriors=one.posteriors,
        decisions=decisions,
        resamples=resamples,
        seed=seed,
    )
    return result, made


def coverage(world: World, datasets: int, resamples: int) -> tuple[dict[str, Array], dict[str, float]]:
    """How often an interval holds the truth: figure -> (C,) for each class, and figure -> share for those of all.

    A class without positives has no interval and is not counted.
    """
    of_class, of_all = truth(world)
    held = {name: np.zeros((2, len(world.prevalence))) for name in of_class}
    together = dict.fromkeys(of_all, 0)
    for seed in range(datasets):
        result, made = measure(world, seed, resamples)
        for name, true in of_class.items():
            low, high = made.per_class[name].interval(result.per_class[name])
            held[name] += np.stack([(low <= true) & (true <= high), ~np.isnan(low)])
        for name, right in of_all.items():
            low, high = made.overall[name].interval(result.overall[name])
            together[name] += bool(low <= right <= high)
    shares = {name: inside / counted for name, (inside, counted) in held.items()}
    return shares, {name: count / datasets for name, count in together.items()}


def least(datasets: int) -> float:
    """What 95 % must not fall below in so many datasets: three standard errors less."""
    return 0.95 - 3 * math.sqrt(0.95 * 0.05 / datasets)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """2,000 datasets: a share then has a standard error of 0.005."""
    per_class, overall = coverage(USUAL, datasets=2000, resamples=100)
    for name, shares in per_class.items():
        assert ((shares >= 0.93) & (shares <= 0.97)).all(), (name, shares)
    for name, share in overall.items():
        assert 0.93 <= share <= (0.99 if "ece" in name else 0.97), (name, share)


@pytest.mark.slow
def test_with_few_positives_they_hold_it_at_least_as_often() -> None:
    """100, 30 and 10 positives, of 60, 20 and 7 patients; the classifier often calls none of the last."""
    per_class, overall = coverage(RARE, datasets=600, resamples=100)
    for name, shares in per_class.items():
        assert shares.mean() >= 0.93, (name, shares)
        assert (shares >= 0.92).all(), (name, shares)
    for name, share in overall.items():
        assert share >= 0.92, (name, share)


@pytest.mark.slow
def test_averages_over_a_class_that_is_called_in_few_patients_are_held() -> None:
    """The third finding is in 20 patients and called in a few of them: its part of the average leans far."""
    _, overall = coverage(RESERVED, datasets=300, resamples=100)
    for name in ("macro_f1", "macro_precision", "macro_recall"):
        assert overall[name] >= 0.94, (name, overall[name])


@pytest.mark.slow
def test_the_average_of_many_rare_classes_is_held_too() -> None:
    """Thirty classes, from 600 positives to 8: AP is too large in most of them, and averaging does not undo that."""
    _, of_all = truth(LONG_TAIL)
    held = dict.fromkeys(("macro_ap", "macro_auroc", "unmoved"), 0)
    datasets = 120
    for seed in range(datasets):
        one = simulate(LONG_TAIL, seed)
        drawn = replicates(one.labels, one.scores, one.patients, resamples=200, seed=seed).overall
        points = evaluate(one.labels, one.scores, one.posteriors, LONG_TAIL.names, LONG_TAIL.prevalence).overall
        for key, figure in (
            ("macro_ap", drawn["macro_ap"]),
            ("macro_auroc", drawn["macro_auroc"]),
            ("unmoved", replace(drawn["macro_ap"], bias=0.0)),
        ):
            low, high = figure.interval(points[figure.name])
            held[key] += bool(low <= of_all[figure.name] <= high)
    assert held["macro_ap"] / datasets >= least(datasets)
    assert held["macro_auroc"] / datasets >= least(datasets)
    assert held["unmoved"] / datasets < 0.88


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.93, 1.0])
def test_calibration_errors_near_0_are_held(slope: float) -> None:
    """Where posteriors are nearly, or wholly, right, most of the error that is found is chance."""
    world = replace(USUAL, slope=slope, offset=(1 - slope) * 0.7)
    per_class, overall = coverage(world, datasets=400, resamples=100)
    assert (per_class["ece"] >= 0.92).all(), per_class["ece"]
    assert overall["macro_ece"] >= 0.92
    assert overall["ece"] >= 0.92


@pytest.mark.slow
def test_resampling_images_instead_of_patients_would_not_do() -> None:
    """Why patients are the clusters: intervals from images alone are too narrow."""
    held = 0
    right = truth(USUAL)[0]["auroc"][0]
    for seed in range(200):
        one = simulate(USUAL, seed)
        images = np.arange(len(one.patients))
        reps = replicates(one.labels[:, :1], one.scores[:, :1], images, resamples=300, seed=seed)
        low, high = interval(reps.per_class["auroc"].values[:, 0])
        held += bool(low <= right <= high)
    assert held / 200 < 0.91


@pytest.mark.slow
@pytest.mark.parametrize("world", [USUAL, RARE])
def test_paired_intervals_and_p_values_hold_too(world: World) -> None:
    """Two equally good sets of scores: no difference, found in one case of twenty."""
    found = np.zeros(4)
    datasets = 300
    for seed in range(datasets):
        one = simulate(world, seed)
        noise = np.random.default_rng(10_000 + seed).normal(size=one.labels.shape)
        others = SHIFT * one.labels + (one.scores - SHIFT * one.labels) * 0.6 + 0.8 * noise
        both = (one.scores, others)
        drawn = [replicates(one.labels, s, one.patients, resamples=200, seed=seed) for s in both]
        points = [auroc(one.labels, s) for s in both]
        each = paired(*points, *(reps.per_class["auroc"] for reps in drawn))
        whole = paired(*map(np.nanmean, points), *(reps.overall["macro_auroc"] for reps in drawn))
        found += np.append(each.p, whole.p) < 0.05
        assert ((each.p < 0.05) == ((each.low > 0) | (each.high < 0))).all()
    assert (found / datasets <= 0.08).all(), found
    assert found.mean() / datasets >= 0.02


# -- by hand -------------------------------------------------------------------------------------------------------


def test_an_interval_of_one_class_by_hand() -> None:
    """Seven patients and 201 resamples: 1 / (1 / 6 + 1 / 200) degrees of freedom, on the logit scale."""
    from cxrlt_cli.bootstrap.inference import of_classes
    from cxrlt_cli.bootstrap.intervals import student

    values = np.linspace(0.7, 0.9, 201)[:, None]
    low, high = (end[0] for end in of_classes("ap", values, [7]).interval(np.array([0.8])))
    reach = student(0.975, 1 / (1 / 6 + 1 / 200)) * values.std(ddof=1) * math.sqrt(7 / 6) / (0.8 * 0.2)
    assert math.log(low / (1 - low)) == pytest.approx(math.log(4) - reach)
    assert math.log(high / (1 - high)) == pytest.approx(math.log(4) + reach)
    slope = of_classes("slope", values, [7])
    assert slope.interval(np.array([0.8]))[1][0] == pytest.approx(0.8 + slope.reach()[0])


@pytest.mark.parametrize("name", ["f1", "precision", "recall"])
def test_an_average_of_decisions_leans_as_its_classes_do(name: str) -> None:
    """That of one class is the interval of the class; that of two equal and independent ones sqrt 2 times narrower."""
    from cxrlt_cli.bootstrap.inference import averaged, of_classes

    values = np.linspace(0.05, 0.15, 201)
    one = of_classes(name, values[:, None], [7])
    low, high = one.interval(np.array([0.1]))
    assert 0.1 - low[0] < high[0] - 0.1
    assert averaged(values, one).interval(0.1) == pytest.approx((low[0], high[0]))
    two = of_classes(name, np.stack([values, np.random.default_rng(0).permutation(values)], axis=1), [7, 7])
    both = averaged(two.values.mean(axis=1), two)
    alike = replace(one, freedom=both.freedom).interval(np.array([0.1]))
    ends = [0.1 + (end[0] - 0.1) * both.error / one.error[0] for end in alike]
    assert both.interval(0.1) == pytest.approx(ends)


def test_the_precision_of_a_class_that_is_never_called_may_be_anything() -> None:
    """Of two findings only the first is ever called: the average counts 0 for the other, and allows for 1."""
    one = simulate(USUAL, 0)
    labels, scores = one.labels[:, [0, 0, 0]], one.scores[:, [0, 0, 0]]
    labels[:, 2] = 0  # never there: left out
    decisions = scores > [0.5, np.inf, np.inf]
    made = replicates(labels, scores, one.patients, decisions=decisions, resamples=100)
    points = evaluate(labels, scores, np.full(scores.shape, 0.1), list("abc"), [0.4] * 3, decisions=decisions)
    average = made.overall["macro_precision"]
    low, high = average.interval(points.overall["macro_precision"])
    own = made.per_class["precision"].interval(points.per_class["precision"])
    assert average.unknown == 0.5
    assert low == pytest.approx(own[0][0] / 2, abs=0.01)
    assert high == pytest.approx((own[1][0] + 1) / 2, abs=0.01)
    zero = replicates(labels, scores, one.patients, decisions=decisions, absent="zero", resamples=100)
    assert zero.overall["macro_precision"].unknown == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["ap", "recall", "f1"])
def test_a_figure_of_0_or_1_has_room_on_the_other_side(name: str) -> None:
    """Clopper and Pearson: of seven patients none failed, so at most 41 % of them do."""
    room = 1 - 0.025 ** (1 / 7)
    whole = Resampled(name, np.ones(20), freedom=6)
    assert whole.interval(1.0) == pytest.approx((1 - room, 1))
    none = Resampled(name, np.zeros(20), freedom=6)
    assert none.interval(0.0) == pytest.approx((0, 2 * room / (1 + room) if name == "f1" else room))
    nothing = Resampled(name, np.full(20, np.nan), freedom=-1)
    np.testing.assert_equal(nothing.interval(math.nan), (math.nan, math.nan))
    single = Resampled(name, np.ones(1), freedom=6)
    np.testing.assert_equal(single.interval(1.0), (math.nan, math.nan))


@pytest.mark.parametrize("name", ["recall", "micro_f1", "ece", "slope", "macro_precision"])
def test_where_every_resample_says_the_same_there_is_no_interval(name: str) -> None:
    np.testing.assert_equal(Resampled(name, np.full(1000, 11 / 12), freedom=0).interval(11 / 12), (math.nan, math.nan))


def test_one_patient_has_figures_and_no_intervals() -> None:
    one = simulate(USUAL, 0)
    made = replicates(one.labels, one.scores, np.zeros(len(one.labels)), posteriors=one.posteriors, resamples=20)
    points = evaluate(one.labels, one.scores, one.posteriors, USUAL.names, USUAL.prevalence)
    low, high = made.per_class["ap"].interval(points.per_class["ap"])
    assert np.isnan([low, high]).all()
    for name in ("macro_ap", "macro_auroc", "macro_f1", "macro_brier", "ece", "micro_f1_at_half"):
        assert np.isnan(made.overall[name].interval(points.overall[name])).all(), name


def test_errors_of_a_class_without_positives_have_the_interval_of_a_mean() -> None:
    """The squared posteriors of twelve patients, and the mean of them: the t interval of one sample."""
    posteriors = np.random.default_rng(0).uniform(0.1, 0.5, size=(12, 1))
    made = replicates(np.zeros((12, 1), np.int8), posteriors, np.arange(12), posteriors=posteriors, resamples=20_000)
    for name, values in (("brier", posteriors**2), ("ece", posteriors)):
        low, high = student_t.interval(0.95, 11, values.mean(), sem(values[:, 0]))
        assert made.per_class[name].reach()[0] == pytest.approx((high - low) / 2, rel=0.02), name


def test_a_macro_average_to_which_no_patient_adds_has_no_interval() -> None:
    labels, scores = np.zeros((20, 3), np.int8), np.random.default_rng(0).normal(size=(20, 3))
    made = replicates(labels, scores, np.arange(20), prevalence=[0.2] * 3, absent="zero", resamples=20)
    np.testing.assert_equal(made.overall["macro_ap"].interval(0.0), (math.nan, math.nan))
    np.testing.assert_equal(made.groups["tail"]["macro_ap"].interval(math.nan), (math.nan, math.nan))


def test_an_average_by_hand() -> None:
    """Welch and Satterthwaite, for two classes that vary and one that is always 0."""
    from cxrlt_cli.bootstrap.inference import averaged, of_classes

    rng = np.random.default_rng(0)
    values = np.stack([0.5 + 0.1 * rng.normal(size=4000), 0.4 + 0.05 * rng.normal(size=4000), np.zeros(4000)], axis=1)
    one = averaged(values.mean(axis=1), of_classes("f1", values, [5, 9, 3]), np.array([0.03, 0.0, 0.0]))
    own = np.append(values[:, :2].var(axis=0, ddof=1) * [5 / 4, 9 / 8], 0.5 * 3.5 / (16 * 5))
    assert one.freedom == pytest.approx(own.sum() ** 2 / (own**2 / [4, 8, 2]).sum())
    assert one.error == pytest.approx(math.sqrt(own.sum()) / 3, rel=0.02)  # the two are drawn independently
    assert one.bias == pytest.approx(0.01)
    wider = averaged(values.mean(axis=1), of_classes("f1", values, [5, 9, 3]), variance=np.array([0.1, 0.1, 0.0]))
    assert wider.error == pytest.approx(math.sqrt(0.2 + own[2]) / 3, rel=0.02)


def test_calibration_errors_reach_further_down_than_up() -> None:
    reps = Resampled("macro_ece", np.linspace(0.10, 0.30, 401), bias=0.04)
    reach = float(reps.reach())
    t = reach / float(reps.error)
    assert reps.interval(0.5) == pytest.approx((0.5 - 0.04 - math.hypot(reach, t * 0.02), 0.5 + reach))
    assert reps.interval(0.05) == pytest.approx((0, 0.05 + reach))
    assert reps.interval(0.99)[1] == 1


def test_the_bias_of_absolute_values_is_that_of_a_folded_normal_variable() -> None:
    from cxrlt_cli.bootstrap.intervals import folded_bias

    noise = np.random.default_rng(0).normal(size=(200_000, 1))
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    for true in (0.0, 0.5, 3.0):  # seen through replicates of a difference whose own error happens to be one s.d.
        seen = math.sqrt(true**2 + 1)
        expected = np.abs(true + noise).mean() - true
        assert folded_bias(seen + noise) == pytest.approx(expected, abs=0.005)
    assert folded_bias(np.full((5, 3, 4), 0.2)).tolist() == [0, 0, 0]
    some = np.concatenate([0.1 + noise[:9], np.full((1, 1), np.nan)])  # a resample without a known label
    assert folded_bias(some) == pytest.approx(folded_bias(some[:9]))


def test_the_bias_of_ap_is_that_of_leaving_out_shares_of_the_patients() -> None:
    from cxrlt_cli.bootstrap.draws import clusters
    from cxrlt_cli.bootstrap.ranking import ap_jackknife, thresholds
    from cxrlt_cli.metrics import average_precision, rank

    one = simulate(USUAL, 3)
    bias, variance = ap_jackknife([thresholds(rank(one.labels[:, 1], one.scores[:, 1]))], clusters(one.patients))
    kept = [one.patients % 20 != share for share in range(20)]
    without = np.array([average_precision(one.labels[rows, 1:2], one.scores[rows, 1:2])[0] for rows in kept])
    whole = average_precision(one.labels[:, 1:2], one.scores[:, 1:2])[0]
    assert bias[0] == pytest.approx(19 * (without.mean() - whole), abs=1e-12)
    assert variance[0] == pytest.approx(19 / 20 * ((without - without.mean()) ** 2).sum(), abs=1e-12)


def test_folds_are_pooled_with_all_their_degrees_of_freedom() -> None:
    """Five folds whose means are known: 95 % of the intervals hold the truth, as each has few patients of its own."""
    from cxrlt_cli.bootstrap import pooled

    held, rng = 0, np.random.default_rng(0)
    for _ in range(600):
        folds = rng.normal(size=(5, 4))
        drawn = [one[rng.integers(0, 4, (200, 4))].mean(axis=1) for one in folds]
        each = [Resampled("macro_slope", values, freedom=3.0, widening=math.sqrt(4 / 3)) for values in drawn]
        together = pooled(each, independent=True)
        assert 3 <= together.freedom <= 15
        low, high = together.interval(folds.mean())
        held += bool(low <= 0 <= high)
    assert abs(held / 600 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 600)


def test_repetitions_are_pooled() -> None:
    from cxrlt_cli.bootstrap import pooled

    first = Resampled("macro_ap", np.array([0.1, 0.2, np.nan]), freedom=9.0, widening=1.2, bias=0.02)
    second = Resampled("macro_ap", np.array([0.3, np.nan, np.nan]), freedom=5.0, widening=1.0, bias=0.0)
    both = pooled([first, second], independent=False)
    np.testing.assert_allclose(both.values, [0.2, 0.2, np.nan])
    assert (both.freedom, both.widening, both.bias) == (5.0, pytest.approx(1.1), pytest.approx(0.01))
    without = Resampled("macro_ap", np.full(3, np.nan))
    alone = pooled([first, without], independent=True)
    np.testing.assert_array_equal(alone.values, first.values)
    assert (alone.freedom, alone.widening, alone.bias) == (9.0, 1.2, 0.02)
    assert np.isnan(pooled([without, without], independent=True).interval(math.nan)).all()


def test_a_bias_is_told_where_it_shows() -> None:
    from cxrlt_cli.bootstrap import bias_note

    assert bias_note([]) == bias_note([0.001, -0.2]) == ""
    assert "by up to 0.031;" in bias_note([0.012, 0.031])


def test_it_is_told_where_too_few_patients_decide() -> None:
    from cxrlt_cli.bootstrap import note_of

    values = np.linspace(0.1, 0.3, 200)
    many, few = (Resampled("macro_ap", values, freedom=freedom) for freedom in (30, 3))
    none = Resampled("macro_ap", 0 * values, freedom=0)
    assert note_of([many, none]) == note_of([]) == ""
    assert "nearly [0, 1]" in note_of([many, few])
    both = note_of([replace(many, bias=0.02), few]).splitlines()
    assert len(both) == 2
    assert "0.020" in both[0]
