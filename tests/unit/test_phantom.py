"""The phantom source: its table keeps its promises, its pictures show what the table says."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from cxrlt_cli.contracts import PluginFault, PrepareRequest, SourceTable
from cxrlt_plugins.datasets.phantom import PhantomSource, build
from cxrlt_plugins.datasets.phantom_art.render import Case, paint, render
from cxrlt_plugins.datasets.phantom_art.scene import Scene
from cxrlt_plugins.datasets.phantom_art.vocabulary import (
    CLASSES,
    EXCLUSIONS,
    FINDINGS,
    LASTING,
    LOADINGS,
    frequencies,
    loading_matrix,
)


def source(count: int = 1500, seed: int = 0, size: int = 64, **options: float) -> PhantomSource:
    return build(PrepareRequest(None, None, size, seed), count=count, **options)


def truth(table: SourceTable) -> np.ndarray:
    return np.stack([np.asarray(table.extra[f"true:{name}"]) for name in table.classes], axis=1)


@pytest.fixture(scope="module")
def large() -> SourceTable:
    return source(6000).table


# The vocabulary


def test_there_are_thirty_classes_and_normal_comes_first():
    assert len(CLASSES) == len(set(CLASSES)) == 30
    assert CLASSES[0] == "Normal"
    assert "Normal" not in FINDINGS


def test_class_names_and_order_are_those_of_the_challenge(shared):
    listed = (shared / "tables" / "cxrlt2026" / "Train_CLASS.txt").read_text().splitlines()
    assert tuple(line.strip() for line in listed if line.strip()) == CLASSES


def test_hidden_causes_explain_less_than_a_finding_varies():
    assert ((loading_matrix() ** 2).sum(axis=1) < 1.0).all()
    assert set(FINDINGS) >= LASTING
    assert {name for causes in LOADINGS.values() for name in causes} <= set(FINDINGS)


def test_the_floor_lifts_rare_classes_and_keeps_their_order():
    raw, _ = frequencies(0.0)
    lifted, _ = frequencies(0.0018)
    assert lifted.min() >= 0.0018
    assert (np.argsort(raw, kind="stable") == np.argsort(lifted, kind="stable")).all()
    assert lifted[FINDINGS.index("cardiomegaly")] == pytest.approx(11537 / 128815, rel=1e-3)


# The table


def test_the_table_is_complete(large):
    columns = [large.image_id, large.patient_id, large.study_id, large.view, large.split, *large.extra.values()]
    assert all(len(column) == 6000 for column in columns)
    assert large.labels.shape == (6000, 30)
    assert large.labels.dtype == np.int8
    assert len(set(large.image_id)) == 6000
    assert large.path is None
    assert set(large.extra) == {"sex", "age", *(f"true:{name}" for name in CLASSES)}


def test_the_table_is_pure_in_seed_count_and_options():
    first, again, other = source(700, 3).table, source(700, 3).table, source(700, 4).table
    assert (first.labels == again.labels).all()
    assert first.image_id == again.image_id
    assert first.extra == again.extra
    assert not (first.labels == other.labels).all()


def test_a_larger_cohort_begins_with_the_smaller_one():
    small, wide = source(700).table, source(1400).table
    assert list(small.image_id) == list(wide.image_id[:700])
    assert small.split == wide.split[:700]
    same = (truth(small) == truth(wide)[:700]).all(axis=1)
    assert same.mean() > 0.95  # the rest are the positives added for the rarest classes


def test_normal_excludes_every_finding(large):
    for labels in (large.labels, truth(large)):
        assert (labels[:, 0] == (labels[:, 1:].sum(axis=1) == 0)).all()


def test_excluding_pairs_never_meet(large):
    exact = truth(large)
    for first, second in EXCLUSIONS:
        assert not (exact[:, CLASSES.index(first)] & exact[:, CLASSES.index(second)]).any()


@pytest.mark.parametrize("seed", [0, 1, 2, 11])
def test_the_rarest_class_has_its_guaranteed_positives(seed):
    table = source(6000, seed).table
    split = np.asarray(table.split)
    for labels in (table.labels, truth(table)):
        for name, least in (("train", 6), ("dev", 2), ("test", 2)):
            assert labels[split == name].sum(axis=0).min() >= least


@pytest.mark.parametrize(("count", "least"), [(600, (1, 1)), (1500, (2, 1)), (12000, (12, 4))])
def test_the_guarantee_grows_with_the_cohort(count, least):
    table = source(count, 5).table
    split = np.asarray(table.split)
    assert table.labels[split == "train"].sum(axis=0).min() >= least[0]
    assert table.labels[split == "dev"].sum(axis=0).min() >= least[1]


def test_a_small_cohort_says_that_classes_may_be_absent():
    assert any("may have no positives" in note for note in source(100).table.notes)
    assert not any("may have no positives" in note for note in source(600).table.notes)


def test_common_classes_have_their_published_frequency(large):
    share, normal = frequencies(0.0018)
    found = truth(large).mean(axis=0)
    assert found[0] == pytest.approx(normal, rel=0.08)
    common = share > 0.03
    assert np.abs(found[1:][common] / share[common] - 1.0).max() < 0.3
    assert np.abs(found[1:][common] / share[common] - 1.0).mean() < 0.1


def test_without_a_floor_the_published_tail_is_kept_and_nothing_is_guaranteed():
    table = source(6000, floor=0.0).table
    assert truth(table)[:, CLASSES.index("Hydropneumothorax")].sum() < 10
    assert not any("at least" in note for note in table.notes)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pleural effusion", "atelectasis"),
        ("Emphysema", "hyperinflated lung"),
        ("sternotomy", "cardiomegaly"),
        ("Support Devices", "central venous catheter"),
        ("aortic elongation", "vertebral degenerative changes"),
    ],
)
def test_findings_that_go_together_meet_more_often_than_by_chance(large, first, second):
    a, b = (truth(large)[:, CLASSES.index(name)].astype(bool) for name in (first, second))
    assert (a & b).mean() > 1.5 * a.mean() * b.mean()


def test_splits_are_disjoint_by_patient_and_have_their_shares(large):
    patients = {name: {p for p, s in zip(large.patient_id, large.split, strict=True) if s == name}
                for name in ("train", "dev", "test")}  # fmt: skip
    assert sum(map(len, patients.values())) == len(set(large.patient_id))
    total = len(set(large.patient_id))
    assert len(patients["dev"]) / total == pytest.approx(0.1, abs=0.003)
    assert len(patients["test"]) / total == pytest.approx(0.1, abs=0.003)


def test_split_shares_are_options():
    table = source(600, dev=0.0, test=0.3).table
    assert "dev" not in table.split
    assert np.mean(np.asarray(table.split) == "test") == pytest.approx(0.3, abs=0.05)


def test_the_views_are_mixed_and_share_the_findings_of_their_study(large):
    view = np.asarray(large.view)
    assert 0.5 < (view == "PA").mean() < 0.65
    assert 0.1 < (view == "AP").mean() < 0.2
    assert 0.2 < (view == "lateral").mean() < 0.33
    exact = truth(large)
    lateral = np.flatnonzero(view == "lateral")
    assert (view[lateral - 1] == "PA").all()
    assert all(large.study_id[k] == large.study_id[k - 1] for k in lateral)
    assert (exact[lateral] == exact[lateral - 1]).all()


def test_lateral_views_can_be_left_out():
    assert set(source(300, lateral=0.0).table.view) == {"PA", "AP"}


def test_patients_have_several_studies_and_lasting_findings_last(large):
    exact, patient = truth(large), np.unique(np.asarray(large.patient_id), return_inverse=True)[1]
    studies = {}
    for owner, study in zip(patient, large.study_id, strict=True):
        studies.setdefault(owner, set()).add(study)
    assert max(map(len, studies.values())) >= 4
    for name in LASTING:
        column = exact[:, CLASSES.index(name)]
        sums, sizes = np.bincount(patient, column), np.bincount(patient)
        assert ((sums == 0) | (sums == sizes)).all()


# The noise


def test_dev_and_test_labels_are_exact_and_train_labels_are_not(large):
    wrong = (large.labels != truth(large)).any(axis=1)
    train = np.asarray(large.split) == "train"
    assert not wrong[~train].any()
    assert 0.05 < wrong[train].mean() < 0.25


def test_the_measured_noise_is_the_noise_asked_for():
    table = source(12000, miss=0.2, spurious=0.1).table
    train = np.asarray(table.split) == "train"
    exact, labelled = truth(table)[train, 1:], table.labels[train, 1:]
    missed = ((exact == 1) & (labelled == 0)).sum() / (exact == 1).sum()
    invented = ((exact == 0) & (labelled == 1)).sum() / (exact == 1).sum()
    assert missed == pytest.approx(0.2, abs=0.02)
    assert invented == pytest.approx(0.1, abs=0.02)


def test_spurious_positives_do_not_drown_rare_classes(large):
    train = np.asarray(large.split) == "train"
    exact, labelled = truth(large)[train, 1:], large.labels[train, 1:]
    rare = np.argsort(exact.sum(axis=0))[:6]
    invented = ((exact == 0) & (labelled == 1))[:, rare].sum()
    assert invented < 0.3 * exact[:, rare].sum()


def test_faint_findings_are_missed_more_often():
    drawn = source(3000, miss=0.3)
    table, faint, strong = drawn.table, [], []
    exact = truth(table)
    for index in np.flatnonzero(np.asarray(table.split) == "train"):
        for name, severity in drawn.case(int(index)).findings.items():
            column = CLASSES.index(name)
            assert exact[index, column] == 1
            (faint if severity < 0.5 else strong).append(table.labels[index, column] == 0)
    assert np.mean(faint) > 2.0 * np.mean(strong)


def test_without_noise_labels_are_the_truth():
    table = source(600, miss=0.0, spurious=0.0).table
    assert (table.labels == truth(table)).all()


# The pictures


def test_drawing_is_pure_in_seed_and_index():
    first, again = source(300), source(300)
    forward = [first.draw(k) for k in (0, 7, 123)]
    backward = [again.draw(k) for k in (123, 7, 0)][::-1]
    assert all((a == b).all() for a, b in zip(forward, backward, strict=True))
    assert not (source(300, seed=1).draw(0) == forward[0]).all()


def test_a_picture_does_not_depend_on_the_size_of_the_cohort():
    small, wide = source(200), source(500)
    same = [k for k in range(200) if small.case(k) == wide.case(k)]
    assert len(same) > 150
    assert all((small.draw(k) == wide.draw(k)).all() for k in same[:5])


def test_a_source_is_small_to_send_and_draws_the_same_elsewhere():
    here = source(6000)
    _ = here.table
    packed = pickle.dumps(here)
    assert len(packed) < 1000
    assert (pickle.loads(packed).draw(42) == here.draw(42)).all()


@pytest.mark.parametrize("size", [16, 96, 257])
def test_pictures_have_the_size_asked_for_and_use_the_range(size):
    picture = source(10, size=size).draw(0)
    assert picture.shape == (size, size)
    assert picture.dtype == np.uint8
    assert picture.std() > 25
    assert picture.max() > 180


def test_an_index_outside_the_cohort_is_refused():
    for index in (-1, 10):
        with pytest.raises(IndexError):
            source(10).draw(index)


@pytest.mark.parametrize("view", ["PA", "AP", "lateral"])
def test_the_picture_does_not_change_with_the_resolution(view):
    case = Case(1, 0, 0, 0, view, "F", 60.0, {"Mass": 0.5})
    coarse, fine = paint(case, 64).attenuation(), paint(case, 256).attenuation()
    shrunk = fine.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), shrunk.ravel())[0, 1] > 0.97


def test_portable_pictures_have_a_magnified_heart():
    def ratio(view: str, patient: int) -> float:
        body = paint(Case(2, patient, patient, 0, view, "M", 50.0, {}), 16).body
        return (body.heart_left + body.heart_right) / (2.0 * body.half_width)

    assert np.mean([ratio("AP", k) - ratio("PA", k) for k in range(20)]) > 0.02


# What a finding changes, and where


def near(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(scene.canvas.x), scene.canvas.y


def everywhere_in_lung(scene: Scene) -> np.ndarray:
    return scene.lung > 0.2


def middle(scene: Scene) -> np.ndarray:
    return near(scene)[0] < 8.5


def low(scene: Scene) -> np.ndarray:
    return near(scene)[1] > 0.0


def around_diaphragm(scene: Scene) -> np.ndarray:
    return near(scene)[1] > 2.0


def upper_right(scene: Scene) -> np.ndarray:
    return (scene.canvas.x < 0.0) & (scene.canvas.y < 0.0)


def arch(scene: Scene) -> np.ndarray:
    x, y = scene.canvas.x, scene.canvas.y
    return (x > -2.0) & (x < 6.0) & (y > -8.0) & (y < 1.0)


def chest_wall(scene: Scene) -> np.ndarray:
    return scene.lung < 0.5


def spine(scene: Scene) -> np.ndarray:
    return near(scene)[0] < 4.5


def upper_middle(scene: Scene) -> np.ndarray:
    return (scene.canvas.y < 10.0) & (np.abs(scene.canvas.x) < 12.0)


EXPECTED: dict[str, Callable[[Scene], np.ndarray]] = {
    "aortic elongation": middle,
    "aortic atheromatosis": arch,
    "cardiomegaly": low,
    "pleural effusion": low,
    "Nodule": everywhere_in_lung,
    "Mass": everywhere_in_lung,
    "atelectasis": low,
    "pleural thickening": everywhere_in_lung,
    "alveolar pattern": everywhere_in_lung,
    "interstitial pattern": everywhere_in_lung,
    "bronchiectasis": everywhere_in_lung,
    "calcified densities": everywhere_in_lung,
    "Pneumothorax": everywhere_in_lung,
    "Hydropneumothorax": everywhere_in_lung,
    "azygos lobe": upper_right,
    "Hernia": around_diaphragm,
    "hemidiaphragm elevation": around_diaphragm,
    "pneumoperitoneo": around_diaphragm,
    "Subcutaneous Emphysema": chest_wall,
    "sternotomy": spine,
    "vertebral degenerative changes": spine,
    "vascular hilar enlargement": upper_middle,
    "central venous catheter": upper_middle,
}


@lru_cache(maxsize=64)
def plain_scene(case_view: str, patient: int, size: int) -> tuple[Case, Scene]:
    case = Case(3, patient, patient, 0, case_view, "FM"[patient % 2], 45.0 + patient, {})
    return case, paint(case, size)


def change(name: str, view: str, severity: float, patient: int, size: int = 48) -> tuple[Scene, np.ndarray]:
    """The scene without the finding, and how much the finding changes the attenuation."""
    case, without = plain_scene(view, patient, size)
    shown = paint(replace(case, findings={name: severity}), size)
    return without, np.abs(shown.attenuation() - without.attenuation())


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.parametrize("view", ["PA", "lateral"])
def test_every_finding_changes_the_picture_more_the_more_severe_it_is(name, view):
    faint = np.mean([change(name, view, 0.1, patient)[1].sum() for patient in range(3)])
    strong = np.mean([change(name, view, 0.9, patient)[1].sum() for patient in range(3)])
    assert faint > 0.25
    assert strong > 1.1 * faint


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_finding_changes_the_picture_where_anatomy_puts_it(name):
    inside = total = 0.0
    for patient in range(4):
        scene, difference = change(name, "PA", 0.6, patient)
        inside += difference[EXPECTED[name](scene)].sum()
        total += difference.sum()
    assert inside / total > 0.8


def test_findings_do_not_move_each_other():
    case = Case(3, 0, 0, 0, "PA", "M", 50.0, {})
    both = paint(replace(case, findings={"sternotomy": 0.5, "Nodule": 0.5}), 96).attenuation()
    wires = paint(replace(case, findings={"sternotomy": 0.5}), 96).attenuation()
    alone = paint(replace(case, findings={"Nodule": 0.5}), 96).attenuation()
    plain = paint(case, 96).attenuation()
    assert np.abs((both - wires) - (alone - plain)).max() < 0.05


def test_a_large_heart_passes_half_the_chest_and_a_normal_one_does_not():
    for patient in range(10):
        for findings, wide in (({}, False), ({"cardiomegaly": 0.1}, True), ({"cardiomegaly": 1.0}, True)):
            scene = paint(Case(4, patient, patient, 0, "PA", "M", 50.0, findings), 16)
            body = scene.body
            assert ((body.heart_left + body.heart_right) / (2.0 * body.half_width) > 0.515) == wide


@pytest.mark.parametrize(("name", "limits"), [("Nodule", (0.5, 3.0)), ("Mass", (3.0, 9.0))])
def test_nodules_are_smaller_than_three_centimetres_and_masses_larger(name, limits):
    for patient in range(12):
        scene, difference = change(name, "PA", float(patient) / 11.0, patient, 128)
        shape = difference > 0.35 * difference.max()
        peak = np.unravel_index(difference.argmax(), difference.shape)
        widths = []
        for line, at in ((shape[peak[0]], peak[1]), (shape[:, peak[1]], peak[0])):
            left = at - np.argmin(line[at::-1])
            widths.append((np.argmin(np.append(line[at:], False)) + at - left) * scene.canvas.pixel)
        assert limits[0] < max(widths) < limits[1]


def test_fluid_under_air_has_a_straight_level_and_free_fluid_a_curved_one():
    def surface(name: str) -> float:
        """Spread (cm) of the height at which the lateral quarter of the chest turns opaque."""
        case = Case(5, 3, 3, 0, "PA", "M", 50.0, {name: 0.7})
        scene, plain = paint(case, 256), paint(replace(case, findings={}), 256)
        lost = (scene.air < 0.1) & (plain.air > 0.25)
        side = np.sign(scene.canvas.x[lost].mean())
        off = np.interp(scene.canvas.y, np.linspace(-32, 32, len(scene.wall)), scene.wall) - side * scene.canvas.x
        tops = [scene.canvas.y[lost & (off > start) & (off < start + 0.4)].min() for start in (0.6, 1.2, 1.8, 2.4, 3.0)]
        return float(np.ptp(tops))

    assert surface("Hydropneumothorax") < 0.3
    assert surface("pleural effusion") > 0.6


def test_the_rim_of_a_pneumothorax_has_no_markings():
    case = Case(6, 1, 1, 0, "PA", "M", 40.0, {"Pneumothorax": 0.9})
    scene, plain = paint(case, 128), paint(replace(case, findings={}), 128)
    side = scene.body.bad_side
    off = np.interp(scene.canvas.y, np.linspace(-32, 32, len(scene.wall)), scene.wall) - side * scene.canvas.x
    sides = [s for s in (-1, 1) if (np.abs(scene.marks - plain.marks) * (s * scene.canvas.x > 0)).sum() > 1.0]
    assert len(sides) == 1
    if sides[0] != side:
        off = np.interp(scene.canvas.y, np.linspace(-32, 32, len(scene.wall)), scene.wall) + side * scene.canvas.x
    rim = (off > 0.3) & (off < 1.5) & (np.abs(scene.canvas.y) < 5.0)
    assert np.abs(scene.marks[rim]).sum() < 0.2 * np.abs(plain.marks[rim]).sum()


# Input that cannot be used


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"count": 0}, "count"),
        ({"dev": -0.1}, "dev"),
        ({"test": 0.6}, "test"),
        ({"miss": 0.6}, "miss"),
        ({"spurious": float("nan")}, "spurious"),
        ({"floor": 0.5}, "floor"),
        ({"lateral": 1.1}, "lateral"),
    ],
)
def test_bad_options_are_refused_by_name(options, where):
    with pytest.raises(PluginFault) as fault:
        source(**options)
    assert fault.value.where == where
    assert fault.value.cure


@pytest.mark.parametrize("request_", [
    PrepareRequest(Path("images"), None, 128, 0),
    PrepareRequest(None, Path("labels.csv"), 128, 0),
    PrepareRequest(None, None, 8, 0),
    PrepareRequest(None, None, 128, -1),
])  # fmt: skip
def test_requests_it_cannot_serve_are_refused(request_):
    with pytest.raises(PluginFault) as fault:
        build(request_)
    assert fault.value.cure


def test_it_says_that_it_is_no_clinical_data():
    assert any("not clinical data" in note for note in source(20).table.notes)
    assert "clinical data" in (build.__doc__ or "")


def test_severity_zero_and_one_can_be_drawn_for_all_findings_at_once():
    for severity in (0.0, 1.0):
        for view in ("PA", "AP", "lateral"):
            picture = render(Case(8, 0, 0, 0, view, "F", 80.0, dict.fromkeys(FINDINGS, severity)), 48)
            assert picture.std() > 10
