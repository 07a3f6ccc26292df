"""Seconds for bootstrap replicates with scikit-learn's functions, over those of ``cxrlt``. Prints one JSON line.

    python benchmarks/metrics_speed.py [--resamples 1000] [--theirs 10] [--quick]

The setting is CXR-LT 2026: 142,928 images of about 67,000 patients, 30 classes as frequent as there. Both sides get the
same resamples, as weights of images. scikit-learn computes AP, AUROC, precision, recall, F1 and the Brier score of each
class with ``sample_weight``; ours computes these and the calibration errors, slope and intercept besides. scikit-learn
runs half of its resamples before ours and half after; its time for all is extrapolated. The goal is at least 50 times
as fast, below 3 GB, and the same AP and AUROC to 1e-12.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from timing import Cost, report, timed

from cxrlt_cli.bootstrap import Replicates, replicates
from cxrlt_cli.bootstrap.draws import clusters, weights

#: Positives of CXR-LT's classes in 128,815 training images.
POSITIVES = (
    43585, 13277, 11537, 8996, 8856, 8248, 7197, 7161, 7129, 5439, 5009, 4591, 4544, 3968, 3549,
    3216, 3214, 2754, 2387, 2068, 1719, 1508, 1323, 875, 455, 349, 307, 181, 56, 45,
)  # fmt: skip
PATIENTS_PER_IMAGE = 67_000 / 142_928


def simulate(images: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Labels (N, C), logits (N, C) that know something of them, and patients (N,)."""
    rng = np.random.default_rng(0)
    share = np.array(POSITIVES) / 128_815
    labels = (rng.random((images, len(share))) < share).astype(np.int8)
    labels[0] = 1  # no class is without a positive, however few images there are
    logits = rng.normal(size=labels.shape) + 1.5 * labels + np.log(share / (1 - share))
    return labels, logits.astype(np.float32), rng.integers(0, max(int(images * PATIENTS_PER_IMAGE), 2), images)


def scikit_learn(
    labels: npt.NDArray[np.int8],
    logits: npt.NDArray[np.float32],
    posteriors: npt.NDArray[np.float64],
    times: Iterable[npt.NDArray[np.uint8]],
) -> npt.NDArray[np.float64]:
    """AP and AUROC (resamples, C, 2); the other figures are computed and dropped."""
    from sklearn.metrics import (
        average_precision_score,
        brier_score_loss,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    kept = []
    for weight in times:
        for c in range(labels.shape[1]):
            label, logit, posterior = labels[:, c], logits[:, c], posteriors[:, c]
            ap = average_precision_score(label, logit, sample_weight=weight)
            auroc = roc_auc_score(label, logit, sample_weight=weight)
            brier_score_loss(label, posterior, sample_weight=weight)
            precision_recall_fscore_support(
                label, posterior >= 0.5, average="binary", sample_weight=weight, zero_division=0
            )
            kept.append((ap, auroc))
    return np.array(kept).reshape(-1, labels.shape[1], 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=142_928)
    parser.add_argument("--resamples", type=int, default=1000, help="of ours")
    parser.add_argument(
        "--theirs", type=int, default=10, help="resamples of scikit-learn, from which all are extrapolated"
    )
    parser.add_argument("--quick", action="store_true", help="toy setting")
    given = parser.parse_args()
    images, count, few = (2000, 40, 2) if given.quick else (given.images, given.resamples, given.theirs)

    import sklearn.metrics  # noqa: F401  # outside the clock

    labels, logits, patients = simulate(images)
    posteriors = 1 / (1 + np.exp(-logits.astype(np.float64)))
    drawn = weights(clusters(patients), 0, 0, few)
    found: list[Replicates] = []
    expected: list[npt.NDArray[np.float64]] = []

    def theirs(half: npt.NDArray[np.uint8]) -> Cost:
        return timed(lambda: expected.append(scikit_learn(labels, logits, posteriors, half)))

    before = theirs(drawn[: few // 2])
    ours = timed(lambda: found.append(replicates(labels, logits, patients, posteriors=posteriors, resamples=count)))
    after = theirs(drawn[few // 2 :])
    wall, cpu = ((a + b) / few * count for a, b in ((before.wall, after.wall), (before.cpu, after.cpu)))
    same = np.stack([found[0].per_class[name].values[:few] for name in ("ap", "auroc")], axis=-1)
    report(
        "metrics_speed",
        "ratio >= 50, peak < 3 GB, difference < 1e-12",
        {
            "ratio": round(wall / ours.wall, 1),
            "ratio_cpu": round(cpu / ours.cpu, 1),
            "seconds": round(ours.wall, 1),
            "seconds_bare": round(wall, 1),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "difference": float(np.nanmax(np.abs(same - np.concatenate(expected)))),
            "rounds": 1,
        },
        {"images": images, "classes": labels.shape[1], "resamples": count, "extrapolated_from": few},
    )


if __name__ == "__main__":
    main()
