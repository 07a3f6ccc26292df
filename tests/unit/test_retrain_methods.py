"""Heads on cached features, against hand-worked and independent answers."""

from __future__ import annotations

import heads
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cxrlt_cli.engine import closed_heads, head_loop
from cxrlt_cli.engine.closed_heads import logistic, nearest_mean, tau_norm
from cxrlt_cli.engine.head_fit import rescale, retrain, retrain_rows
from cxrlt_cli.engine.head_job import head_logits, rebuilt
from cxrlt_cli.engine.signals import INTERRUPT, TERMINATE, StopRequest
from cxrlt_cli.errors import CxrltError, Interrupted, PluginError, Terminated, TrainingError, UsageError
from cxrlt_cli.events import Advanced, Event
from cxrlt_cli.metrics import auroc, average_precision

FEW = {"epochs": 3, "batch_size": 32}


def state_of(made) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in made.state.items()}


# -- tau-normalisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_tau_norm_by_hand(tau: float) -> None:
    job = heads.job({"method": "tau-norm", "tau": tau})
    weight = job.joint.module.weight.detach().double().numpy()
    bias = job.joint.module.bias.detach().double().numpy()
    made = tau_norm(job)
    expected = np.array([row / np.sqrt((row**2).sum()) ** tau for row in weight])
    np.testing.assert_allclose(state_of(made)["weight"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state_of(made)["bias"], bias)
    np.testing.assert_allclose(made.logits, job.cohort.dev @ expected.T + bias, rtol=1e-4, atol=1e-3)
    assert made.link is None
    assert made.facts == {"tau": tau}


def test_tau_norm_chooses_the_best_dev_f1() -> None:
    job = heads.job({"method": "tau-norm"}, plain=True)
    made = tau_norm(job)

    def macro_f1(logits: np.ndarray) -> float:
        labels, said = job.cohort.dev_labels, logits >= 0
        scores = []
        for c in range(labels.shape[1]):
            true = int((said[:, c] & (labels[:, c] == 1)).sum())
            wrong = int((said[:, c] & (labels[:, c] == 0)).sum())
            missed = int((~said[:, c] & (labels[:, c] == 1)).sum())
            if true + missed:
                scores.append(2 * true / (2 * true + wrong + missed))
        return float(np.mean(scores))

    jobs = {tau: heads.job({"method": "tau-norm", "tau": tau}, plain=True) for tau in closed_heads.TAUS}
    tried = {tau: macro_f1(tau_norm(each).logits) for tau, each in jobs.items()}
    assert len(set(tried.values())) > 1
    assert tried[made.facts["tau"]] == max(tried.values())


def test_a_class_without_weights_stays_finite() -> None:
    job = heads.job({"method": "tau-norm", "tau": 1.0})
    with torch.no_grad():
        job.joint.module.weight[0] = 0
    made = tau_norm(job)
    assert np.isfinite(made.logits).all()
    assert (made.state["weight"][0] == 0).all()


@pytest.mark.parametrize("method", ["tau-norm", "lws"])
def test_monotone_methods_leave_ap_and_auroc(method: str) -> None:
    job = heads.job({"method": method, **({"train": FEW} if method == "lws" else {"tau": 0.5})})
    made = {"tau-norm": tau_norm, "lws": rescale}[method](job)
    labels = job.cohort.dev_labels
    assert not np.allclose(made.logits, job.joint.logits)
    for figure in (average_precision, auroc):
        np.testing.assert_array_equal(figure(labels, made.logits), figure(labels, job.joint.logits))


@pytest.mark.parametrize("method", ["tau-norm", "lws"])
def test_a_head_of_another_kind_is_refused(method: str) -> None:
    job = heads.job({"method": method}, head={"name": "cosine"})
    with pytest.raises(UsageError, match="not answer in proportion") as caught:
        {"tau-norm": tau_norm, "lws": rescale}[method](job)
    assert "crt" in caught.value.cure


# -- learnable weight scaling --------------------------------------------------------------------------------------


def test_lws_learns_factors_above_zero_and_nothing_else() -> None:
    job = heads.job(
        {"method": "lws", "train": FEW, "optim": {"lr": 0.05}}, head={"name": "linear", "norm": True, "dropout": 0.5}
    )
    before = {name: tensor.clone() for name, tensor in job.joint.module.state_dict().items()}
    made = rescale(job)
    scales = np.array(list(made.facts["scales"].values()))
    assert (scales > 0).all()
    assert np.abs(scales - 1).max() > 0.01
    np.testing.assert_allclose(made.state["weight"], before["weight"].numpy() * scales[:, None], rtol=1e-5)
    for name in before.keys() - {"weight"}:
        assert torch.equal(made.state[name], before[name])
    for name, tensor in job.joint.module.state_dict().items():
        assert torch.equal(tensor, before[name]), "the joint head itself must not change"


def test_lws_lowers_the_loss() -> None:
    recipe = {"method": "lws", "train": {"epochs": 20, "batch_size": 50}, "optim": {"lr": 0.05}}
    losses = [line["loss"] for line in rescale(heads.job(recipe)).history]
    assert losses[-1] < losses[0]


# -- nearest class mean --------------------------------------------------------------------------------------------


def hand_worked(distance: str):
    """Three images of two features; the class is there in the first two."""
    job = heads.job({"method": "ncm", "ncm": {"distance": distance}})
    return job, job.cohort.views[0].astype(np.float64), job.cohort.labels


def test_ncm_euclidean_by_hand() -> None:
    job, features, labels = hand_worked("euclidean")
    made = nearest_mean(job)
    assert made.ref.name == "linear"
    for c in range(3):
        there, not_there = features[labels[:, c] == 1].mean(0), features[labels[:, c] == 0].mean(0)
        dev = job.cohort.dev.astype(np.float64)
        expected = (((dev - not_there) ** 2).sum(1) - ((dev - there) ** 2).sum(1)) / 2
        np.testing.assert_allclose(made.logits[:, c], expected, rtol=1e-3, atol=1e-2)


def test_ncm_cosine_by_hand() -> None:
    job, features, labels = hand_worked("cosine")
    made = nearest_mean(job)
    assert made.ref.name == "cosine"
    unit = features / np.sqrt((features**2).sum(1, keepdims=True))
    dev = job.cohort.dev / np.sqrt((job.cohort.dev.astype(np.float64) ** 2).sum(1, keepdims=True))
    for c in range(3):
        means = [unit[labels[:, c] == value].mean(0) for value in (1, 0)]
        there, not_there = (mean / np.sqrt((mean**2).sum()) for mean in means)
        nearer = dev @ there - dev @ not_there
        direction = there - not_there
        expected = nearer / np.sqrt((direction**2).sum())
        np.testing.assert_allclose(made.logits[:, c], expected, rtol=1e-4, atol=1e-5)
        clear = np.abs(nearer) > 1e-6
        assert ((made.logits[clear, c] > 0) == (nearer[clear] > 0)).all()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_ncm_gives_a_class_without_positives_its_prior(distance: str) -> None:
    job = heads.job({"method": "ncm", "ncm": {"distance": distance}})
    made = nearest_mean(job)
    prior = job.cohort.stats.prevalence[-1]
    np.testing.assert_allclose(made.logits[:, -1], np.log(prior / (1 - prior)), rtol=1e-5)
    assert made.link is None
    assert any("absent" in note for note in made.notes)


# -- logistic regression -------------------------------------------------------------------------------------------


def test_logistic_is_scikit_learn_on_raw_features() -> None:
    penalty = 0.01
    job = heads.job({"method": "logistic", "logistic": {"penalties": [penalty], "max_iter": 5000}})
    made = logistic(job)
    x, labels = job.cohort.views[0].astype(np.float64), job.cohort.labels
    mean, spread = x.mean(0), x.std(0)
    for c in range(3):
        known = labels[:, c] != -1
        strength = 1 / (penalty * known.sum())
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
        model.fit((x[known] - mean) / spread, labels[known, c])
        expected = model.decision_function((job.cohort.dev - mean) / spread)
        np.testing.assert_allclose(made.logits[:, c], expected, rtol=5e-3, atol=5e-3)
    assert made.facts["penalties"] == {"common": penalty, "usual": penalty, "rare": penalty, "absent": None}


def test_logistic_chooses_the_penalty_by_other_patients() -> None:
    """On labels that have nothing to do with the features, the strongest penalty must win."""
    penalties = {"penalties": [1e-4, 100.0]}
    job = heads.job({"method": "logistic", "logistic": penalties}, count=120)
    job.cohort.labels[:] = np.random.default_rng(3).integers(0, 2, job.cohort.labels.shape)
    assert set(logistic(job).facts["penalties"].values()) == {100.0}
    told = heads.job({"method": "logistic", "logistic": penalties}, count=2000)
    assert logistic(told).facts["penalties"]["common"] == 1e-4


def test_cross_fitting_keeps_a_patient_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    true = closed_heads._class

    def spy(features, labels, folds, config):
        seen.append(folds)
        return true(features, labels, folds, config)

    monkeypatch.setattr(closed_heads, "_class", spy)
    job = heads.job({"method": "logistic", "logistic": {"folds": 4}})
    logistic(job)
    by_patient: dict[str, set[int]] = {}
    for patient, fold in zip(job.cohort.patients, seen[0].tolist(), strict=True):
        by_patient.setdefault(patient, set()).add(fold)
    assert {len(folds) for folds in by_patient.values()} == {1}
    assert set(seen[0].tolist()) == {0, 1, 2, 3}


def test_logistic_posteriors_are_probabilities() -> None:
    job = heads.job({"method": "logistic"}, count=3000)
    made = logistic(job)
    assert made.link is not None
    known = job.cohort.dev_labels[:, 0] != -1
    mean = made.link.posterior(made.logits)[known, 0].mean()
    assert abs(mean - job.cohort.dev_labels[known, 0].mean()) < 0.06
    np.testing.assert_allclose(made.link.log_odds_of(made.logits), made.logits, rtol=1e-6)


def test_a_rare_class_keeps_its_prior() -> None:
    job = heads.job({"method": "logistic", "logistic": {"min_positives": 399}})
    made = logistic(job)
    prior = np.array(job.cohort.stats.prevalence)
    np.testing.assert_allclose(made.logits, np.tile(np.log(prior / (1 - prior)), (240, 1)), rtol=1e-5)
    assert any("common" in note for note in made.notes)


def test_logistic_stops_when_asked() -> None:
    request = StopRequest()

    def stop_at_first(event: Event) -> None:
        if isinstance(event, Advanced):
            request.code = TERMINATE

    with pytest.raises(Terminated, match="usual"):
        logistic(heads.job({"method": "logistic"}, request=request, emit=stop_at_first))


# -- classifier re-training ----------------------------------------------------------------------------------------


def test_crt_learns_and_is_repeatable() -> None:
    recipe = {"method": "crt", "train": {"epochs": 30, "batch_size": 64}, "optim": {"lr": 0.03}}
    head = {"name": "linear", "norm": True, "dropout": 0.2}
    made = retrain(heads.job({**recipe, "head": head}))
    again = retrain(heads.job({**recipe, "head": head}))
    for name, tensor in made.state.items():
        assert torch.equal(tensor, again.state[name])
    other = retrain(heads.job({**recipe, "head": head, "train": {"epochs": 30, "batch_size": 64, "seed": 1}}))
    assert not torch.equal(made.state["weight"], other.state["weight"])
    assert made.history[-1]["macro_ap"] > made.history[-1]["chance_ap"] + 0.2
    assert [line["epoch"] for line in made.history] == list(range(1, 31))


def test_the_last_epoch_counts() -> None:
    job = heads.job({"method": "crt", "train": FEW, "optim": {"lr": 0.05}})
    made = retrain(job)
    head = rebuilt(job, made.ref, made.state)
    np.testing.assert_array_equal(head_logits(head, job.cohort.dev, job.device), made.logits)
    assert made.history[-1]["macro_ap"] == pytest.approx(
        np.nanmean(average_precision(job.cohort.dev_labels, made.logits))
    )


def test_the_bias_starts_at_the_priors() -> None:
    job = heads.job({"method": "crt", "train": {"epochs": 1}, "optim": {"lr": 1e-12}})
    prior = np.array(job.cohort.stats.prevalence)
    np.testing.assert_allclose(retrain(job).state["bias"], np.log(prior / (1 - prior)), rtol=1e-4)


def test_the_link_takes_the_draws_of_a_sampler_back() -> None:
    """Without features to tell images apart, only the bias learns: posteriors must still be the natural prevalence."""
    recipe = {
        "method": "crt",
        "sampler": "class-aware",
        "train": {"epochs": 40, "batch_size": 200},
        "optim": {"lr": 0.05},
    }
    job = heads.job(recipe, count=2000)
    for view in job.cohort.views:
        view[:] = 0
    job.cohort.dev[:] = 0
    made = retrain(job)
    assert made.link is not None
    drawn = 1 / (1 + np.exp(-made.logits[0]))
    posterior = made.link.posterior(made.logits)[0]
    natural = np.array(job.cohort.stats.share)
    assert drawn[2] > 2 * natural[2], "the sampler raises the rare class, or this test shows nothing"
    np.testing.assert_allclose(posterior[:3], natural[:3], rtol=0.15)


def test_unknown_labels_teach_nothing() -> None:
    weights = []
    for filler in (0.0, 1e6):
        job = heads.job({"method": "crt", "train": FEW})
        job.cohort.labels[:50] = -1
        job.cohort.views[0][:50] = filler
        weights.append(retrain(job).state["weight"])
    assert torch.equal(*weights)


def test_views_take_turns() -> None:
    recipe = {"method": "crt", "train": {"epochs": 2, "batch_size": 64}}
    both = heads.job(recipe, views=2)
    made = retrain(both)
    both.cohort.views[1][:] = 0
    assert not torch.equal(retrain(both).state["weight"], made.state["weight"]), "the second epoch uses the second view"
    one = heads.job({**recipe, "train": {"epochs": 1, "batch_size": 64}}, views=2)
    only = retrain(one)
    one.cohort.views[1][:] = 0
    assert torch.equal(retrain(one).state["weight"], only.state["weight"])


def test_rows_only_leaves_what_classes_share() -> None:
    head = {"name": "linear", "norm": True}
    job = heads.job({"method": "keep-best", "train": FEW, "optim": {"lr": 0.05}}, head=head)
    made, before = retrain_rows(job), job.joint.module.state_dict()
    for name in ("norm.weight", "norm.bias"):
        assert torch.equal(made.state[name], before[name])
    assert not torch.equal(made.state["weight"], before["weight"])


@pytest.mark.parametrize(("code", "kind"), [(INTERRUPT, Interrupted), (TERMINATE, Terminated)])
def test_crt_stops_when_asked(code: int, kind: type[CxrltError]) -> None:
    request = StopRequest()
    request.code = code
    with pytest.raises(kind, match="epoch 1/3") as caught:
        retrain(heads.job({"method": "crt", "train": FEW}, request=request))
    assert "features are kept" in caught.value.cure


def test_a_loss_that_is_not_finite_is_told() -> None:
    job = heads.job({"method": "crt", "train": FEW})
    job.cohort.views[0][:, 0] = np.nan
    with pytest.raises(TrainingError, match="nan in epoch 1") as caught:
        retrain(job)
    assert "optim.lr" in caught.value.cure


@pytest.mark.parametrize(("enough", "inside"), [(1 << 22, 1), (0, 2)])
def test_small_steps_take_one_thread(monkeypatch: pytest.MonkeyPatch, enough: int, inside: int) -> None:
    monkeypatch.setattr(head_loop, "_FOR_ONE_THREAD", enough)
    seen: set[int] = set()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        retrain(heads.job({"method": "crt", "train": FEW}, emit=lambda event: seen.add(torch.get_num_threads())))
        assert seen == {inside}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_missing_loss_is_named() -> None:
    with pytest.raises(PluginError, match="no loss 'bse'"):
        retrain(heads.job({"method": "crt", "loss": "bse"}))
