"""From dev to test on simulated scores: coverage, and every component against what it should find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from cxrlt_cli.gap import COMPONENTS, FEWEST, Decided, Dev, Gap, Judged, Step, Target, gap, judged_classes, point
from cxrlt_cli.metrics import mean_defined

Array = npt.NDArray[np.float64]
CLASSES = 10
SHARES = np.geomspace(0.3, 0.03, CLASSES)
#: What positives score above negatives after each epoch: a plateau, on which chance chooses.
RISE = 1.2 + 0.5 * np.array([0.0, 0.6, 0.8, 0.85, 0.9])


def world(rng: np.random.Generator, patients: int, shares: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Truth (N, C) and scores of every epoch (E, N, C); two images a patient, alike, and epochs that err alike."""
    truth = np.repeat(rng.random((patients, CLASSES)) < shares, 2, axis=0)
    common = 0.9 * rng.normal(size=truth.shape) + 0.6 * np.repeat(rng.normal(size=(patients, CLASSES)), 2, axis=0)
    scores = [rise * truth + common + 0.5 * rng.normal(size=truth.shape) for rise in RISE]
    return truth.astype(np.int8), np.stack(scores)


def decided(scores: Array, threshold: float = 0.4) -> Decided:
    posteriors = 1 / (1 + np.exp(-(scores - 2.5)))
    return Decided(posteriors, posteriors >= threshold)


def simulated(seed: int, patients: int = 250) -> tuple[Dev, Target, Dev]:
    """Dev with report labels, the best epoch kept; a target of another prevalence; what the target shows."""
    rng = np.random.default_rng(seed)
    truth, epochs = world(rng, patients, SHARES)
    moved = np.clip(SHARES * rng.uniform(0.5, 2.5, CLASSES), 0, 0.5)
    there, later = world(rng, 3 * patients, moved)
    draw = np.repeat(rng.random((patients, CLASSES)), 2, axis=0)
    labels = np.where(truth == 1, draw > 0.2, draw < 0.05 * SHARES / (1 - SHARES)).astype(np.int8)
    kept = int(np.argmax([macro(labels, scores) for scores in epochs]))
    of_dev, of_target = decided(epochs[kept]), decided(later[kept])
    names, classes = [f"p{k}" for k in np.repeat(np.arange(patients), 2)], tuple(f"c{k}" for k in range(CLASSES))
    dev = Dev(classes, labels, epochs[kept], names, of_dev, of_dev, epochs=epochs, kept=kept, exact=truth)
    target = Target(len(there), (there == 1).mean(axis=0))
    owners = [f"q{k // 2}" for k in range(len(there))]
    return dev, target, Dev(classes, there, later[kept], owners, of_target, of_target)


def macro(labels: npt.NDArray[np.int8], scores: Array) -> float:
    return float(mean_defined(point(Judged(labels, scores, *decided(scores)))["macro_ap"]))


def shown(real: Dev, found: Gap) -> dict[str, float]:
    some = real.select(np.isin(np.array(real.classes), found.classes))
    figures = point(Judged(some.labels, some.scores, *some.honest))
    return {name: float(mean_defined(values)) for name, values in figures.items()}


def step(found: Gap, name: str, figure: str = "macro_ap") -> Step:
    return next(each for each in found.waterfalls[figure].steps if each.name == name)


@pytest.mark.slow
def test_coverage() -> None:
    """The 95 % prediction interval holds what the test set shows; the correction removes the error on average."""
    figures = ("macro_ap", "macro_auroc", "macro_f1")
    inside = dict.fromkeys(figures, 0)
    plain, corrected = [], []
    for seed in range(40):
        dev, target, real = simulated(seed)
        found = gap(dev, target, resamples=100, seed=seed)
        truth = shown(real, found)
        for name in figures:
            ends = found.waterfalls[name].prediction
            assert ends is not None
            inside[name] += ends[0] <= truth[name] <= ends[1]
        plain.append(found.waterfalls["macro_ap"].start - truth["macro_ap"])
        corrected.append(found.waterfalls["macro_ap"].expected - truth["macro_ap"])
    assert min(inside.values()) >= 35  # binomial(40, 0.95) is lower in one case of seventy
    assert abs(np.mean(corrected)) < 0.012
    assert abs(np.mean(plain)) > 0.08


@pytest.fixture(scope="module")
def one() -> tuple[Dev, Target, Dev, Gap]:
    dev, target, real = simulated(3)
    return dev, target, real, gap(dev, target, resamples=100)


def test_start_and_changes_add_up(one: tuple[Dev, Target, Dev, Gap]) -> None:
    for each in one[3].waterfalls.values():
        assert tuple(part.name for part in each.steps) == COMPONENTS
        now = each.start
        for part in each.steps:
            now += part.change or 0.0
            assert part.after == pytest.approx(now, abs=1e-12)
        assert each.expected == each.steps[-1].after
        assert each.prediction is not None
        assert each.prediction[0] <= each.confidence[0] <= each.expected <= each.confidence[1] <= each.prediction[1]


def test_the_start_is_what_evaluate_says(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev, found = one[0], one[3]
    assert found.waterfalls["macro_ap"].start == pytest.approx(macro(dev.labels, np.asarray(dev.scores)))


def test_exact_labels_count_as_the_score_against_them(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev, _, _, found = one
    assert found.classes == dev.classes
    assert dev.exact is not None
    change = macro(dev.exact, np.asarray(dev.scores)) - macro(dev.labels, np.asarray(dev.scores))
    assert step(found, "labels").change == pytest.approx(change)
    low, high = step(found, "labels").low, step(found, "labels").high
    assert low is not None
    assert high is not None
    assert low < change < high


def test_exact_labels_of_some_images_are_compared_there(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev, target = one[:2]
    assert dev.exact is not None
    partly = dev.exact.copy()
    partly[200:] = -1
    found = gap(replace(dev, exact=partly), replace(target, prevalence=None), resamples=20)
    some = dev.select(np.isin(np.array(dev.classes), found.classes))
    assert some.exact is not None
    scores = np.asarray(some.scores)[:200]
    reported, exact = (side[:200] for side in (some.labels, some.exact))
    share = (some.labels == 1).mean(axis=0)  # of reports, and of exact labels had all images one
    true_of = [np.nanmean(np.where(reported == kind, exact, np.nan), axis=0) for kind in (0, 1)]
    figures = [
        point(Judged(labels, scores, *decided(scores), prevalence=prevalence))["macro_ap"]
        for labels, prevalence in ((reported, share), (exact, share * true_of[1] + (1 - share) * true_of[0]))
    ]
    assert step(found, "labels").change == pytest.approx(float(mean_defined(figures[1] - figures[0])))


def partly(seed: int, kept: Callable[[np.random.Generator, Dev], npt.NDArray[np.bool_]]) -> tuple[Gap, Gap]:
    """What is found with all exact labels and with some, for a target of dev's own prevalence."""
    dev = simulated(seed, patients=1500)[0]
    assert dev.exact is not None
    target = Target(len(dev.labels), (dev.exact == 1).mean(axis=0))
    exact = np.where(kept(np.random.default_rng(seed), dev), dev.exact, -1).astype(np.int8)
    plain = replace(dev, epochs=None)
    return gap(plain, target, resamples=20), gap(replace(plain, exact=exact), target, resamples=20)


@pytest.mark.parametrize(
    "kept",
    [
        lambda rng, dev: np.broadcast_to(rng.random((len(dev.labels), 1)) < 0.3, dev.labels.shape),
        lambda rng, dev: (dev.labels == 1) | (rng.random(dev.labels.shape) < 0.2),
    ],
    ids=["some images", "all that are reported and some others"],
)
def test_noise_of_labels_is_no_shift_of_prevalence(
    kept: Callable[[np.random.Generator, Dev], npt.NDArray[np.bool_]],
) -> None:
    """Where exact labels are known for some images only, what they correct counts once, under its own name."""
    full, some = partly(5, kept)
    assert step(full, "labels").change == pytest.approx(step(some, "labels").change, abs=0.025)
    assert (step(full, "labels").change or 0) > 0.05
    for figure in ("macro_ap", "macro_f1"):
        assert step(full, "prevalence", figure).change == pytest.approx(0, abs=1e-9)
        assert step(some, "prevalence", figure).change == pytest.approx(0, abs=0.008)


def test_labels_read_again_of_reported_findings_only_judge_no_class(one: tuple[Dev, Target, Dev, Gap]) -> None:
    """Without negatives among them, AP of the reports would be 1."""
    dev, target = one[:2]
    assert dev.exact is not None
    again = replace(dev, exact=np.where(dev.labels == 1, dev.exact, -1).astype(np.int8))
    assert not judged_classes(again, target).any()


def test_prevalence_moves_ap_and_leaves_auroc(one: tuple[Dev, Target, Dev, Gap]) -> None:
    assert abs(step(one[3], "prevalence").change or 0) > 0.02
    assert step(one[3], "prevalence", "macro_auroc").change == pytest.approx(0, abs=1e-12)


def test_in_sample_decisions_against_cross_fitted_ones(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev, target = one[:2]
    worse = decided(np.asarray(dev.scores), 0.9)
    found = gap(replace(dev, honest=worse), target, resamples=20)
    f1 = [mean_defined(point(Judged(dev.labels, dev.scores, *side))["macro_f1"]) for side in (dev.fitted, worse)]
    assert step(found, "decisions", "macro_f1").change == pytest.approx(float(f1[1] - f1[0]))
    assert step(found, "decisions").change == 0
    assert step(found, "decisions").why.startswith("0 by construction")


def test_seen_patients_leave(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev, _, _, _ = one
    unseen = np.arange(len(dev.labels)) >= 100
    known = replace(dev, unseen=unseen, exact=None)
    found = gap(known, Target(), resamples=20)
    some = known.select(np.isin(np.array(dev.classes), found.classes))
    scores = np.asarray(some.scores)
    change = macro(some.labels[100:], scores[100:]) - macro(some.labels, scores)
    assert step(found, "patients").change == pytest.approx(change)


def test_views_have_the_shares_of_the_target(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev = replace(one[0], exact=None, views=["PA"] * 300 + ["AP"] * 200)
    found = gap(dev, Target(views={"AP": 1.0}), resamples=20)
    some = dev.select(np.isin(np.array(dev.classes), found.classes))
    scores = np.asarray(some.scores)
    change = macro(some.labels[300:], scores[300:]) - macro(some.labels, scores)
    assert step(found, "views").change == pytest.approx(change)
    same = gap(dev, Target(views={"PA": 0.6, "AP": 0.4}), resamples=20)
    assert step(same, "views").change == pytest.approx(0, abs=1e-12)


def test_images_that_stand_for_many_count_as_few(one: tuple[Dev, Target, Dev, Gap]) -> None:
    """Patients with a finding are counted as many as say as much with equal weights (Kish)."""
    dev = replace(one[0], exact=None, views=["PA"] * 460 + ["AP"] * 40)
    assert dev.holders(dev.labels, Target()) == pytest.approx(
        [len(set(np.array(dev.patients)[column == 1])) for column in dev.labels.T]
    )
    same, apart = Target(views={"AP": 0.08, "PA": 0.92}), Target(views={"AP": 0.9, "PA": 0.1})
    plain, alike, few = (dev.holders(dev.labels, target) for target in (Target(), same, apart))
    assert alike == pytest.approx(plain)
    assert (few[:5] < 0.5 * plain[:5]).all()
    rare = (plain >= FEWEST) & (few.round() < FEWEST)
    assert rare.any()
    assert not judged_classes(dev, apart)[rare].any()


@pytest.mark.parametrize(("here", "there"), [(200, 1000), (1000, 200)])
def test_calibration_errors_of_few_images_are_larger(here: int, there: int) -> None:
    """Posteriors that are right show an error by chance, the larger the fewer images; most of it is foretold."""
    plain, corrected, inside = [], [], 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sides = []
        for images in (here, there):
            scores = rng.normal(0, 1.2, (images, CLASSES))
            own = Decided(1 / (1 + np.exp(2.5 - scores)), scores > 2)
            sides.append(((rng.random(scores.shape) < own.posteriors).astype(np.int8), scores, own))
        (labels, scores, own), (later, others, further) = sides
        names = [f"p{k}" for k in range(here)]
        found = gap(Dev(tuple("abcdefghij"), labels, scores, names, own, own), Target(there), resamples=60)
        real = float(point(Judged(later, others, *further))["ece"][0])
        fall = found.waterfalls["ece"]
        assert fall.prediction is not None
        inside += fall.prediction[0] <= real <= fall.prediction[1]
        plain.append(fall.start - real)
        corrected.append(fall.expected - real)
    assert abs(np.mean(corrected)) < 0.65 * abs(np.mean(plain))
    assert inside >= 9


def test_what_is_not_known_is_not_called_zero(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev = replace(one[0], epochs=None, exact=None)
    found = gap(dev, Target(why={"labels": "nobody knows", "patients": "0 by construction: disjoint"}), resamples=20)
    for name in ("checkpoint", "labels", "views", "prevalence", "size"):
        assert step(found, name).change is None
    assert step(found, "labels").why == "nobody knows"
    assert step(found, "patients").change == 0
    assert found.waterfalls["macro_ap"].prediction is None
    assert step(one[3], "checkpoint", "macro_f1").change is None


@pytest.mark.slow
def test_choosing_an_epoch_flatters_f1_by_as_much_as_is_said() -> None:
    """Sixty worlds: what F1 of the chosen epoch exceeds its worth by, less what that of any epoch does."""
    said, real = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        (truth, epochs), (there, later) = world(rng, 120, SHARES), world(rng, 2400, SHARES)
        kept = int(np.argmax([macro(truth, scores) for scores in epochs]))
        names, own = [f"p{k // 2}" for k in range(len(truth))], decided(epochs[kept])
        asked: list[int] = []

        def decide(epoch: int, epochs: Array = epochs, asked: list[int] = asked) -> Decided:
            asked.append(epoch)
            return decided(epochs[epoch])

        classes = tuple(f"c{k}" for k in range(CLASSES))
        dev = Dev(classes, truth, epochs[kept], names, own, own, epochs=epochs, kept=kept, decide=decide)
        found = gap(dev, Target(), resamples=200, seed=seed)
        chosen = np.isin(np.array(dev.classes), found.classes)
        here, elsewhere = (
            np.array([f1(labels[:, chosen], scores[:, chosen]) for scores in each])
            for labels, each in ((truth, epochs), (there, later))
        )
        flattery = here - elsewhere
        real.append(flattery[kept] - flattery.mean())
        said.append(-(step(found, "checkpoint", "macro_f1").change or 0.0))
        assert found.chosen is not None
        assert set(asked) == set(np.flatnonzero(found.chosen).tolist()) | {kept}  # the others are never asked for
        assert step(found, "checkpoint", "ece").low is not None
    assert np.mean(said) > 0.003
    assert np.mean(said) == pytest.approx(np.mean(real), abs=2 * np.std(real) / np.sqrt(len(real)))


def f1(labels: npt.NDArray[np.int8], scores: Array) -> float:
    return float(mean_defined(point(Judged(labels, scores, *decided(scores)))["macro_f1"]))


def test_rare_classes_are_not_judged(one: tuple[Dev, Target, Dev, Gap]) -> None:
    dev, target = one[:2]
    labels = dev.labels.copy()
    labels[:, 0] = 0
    labels[: 2 * (FEWEST - 1) : 2, 0] = 1
    rare = replace(dev, labels=labels, exact=None)
    assert judged_classes(rare, target).tolist() == [False] + [True] * (CLASSES - 1)
    labels[2 * (FEWEST - 1), 0] = 1
    assert judged_classes(rare, target).all()
    assert target.prevalence is not None
    gone = replace(target, prevalence=np.where(np.arange(CLASSES) == 2, 0.0, target.prevalence))
    assert judged_classes(rare, gone).tolist() == [k != 2 for k in range(CLASSES)]
    found = gap(rare, gone, resamples=20)
    assert found.left_out == ("c2",)
    with pytest.raises(ValueError, match="no class"):
        gap(replace(rare, labels=np.zeros_like(labels)), target, resamples=20)


def test_more_positives_lower_ap() -> None:
    """Chance AP of few positives lies above their share; more positives bring it down, fewer up."""
    rng = np.random.default_rng(0)
    labels = np.zeros((300, 4), np.int8)
    labels[:12] = 1
    scores = rng.normal(size=labels.shape)
    side = decided(scores)
    dev = Dev(tuple("abcd"), labels, scores, [f"p{k}" for k in range(300)], side, side)
    more, fewer, same = (gap(dev, Target(images=images), resamples=20) for images in (30_000, 100, 300))
    assert (step(more, "size").change or 0) < -0.002
    assert (step(fewer, "size").change or 0) > 0.002
    assert step(same, "size").change == pytest.approx(0, abs=1e-12)
