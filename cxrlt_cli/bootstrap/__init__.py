"""The patient-clustered bootstrap: every figure in resamples of the patients, intervals, and paired comparisons.

numpy only. Patients are the clusters, since images of one patient are alike; a resample is a whole weight for each
image, so nothing is sorted twice (DESIGN 11).
"""

from .inference import NOTABLE_BIAS, Difference, Resampled, holm, interval, on_logit_scale, paired, pooled
from .resampling import Replicates, replicates

__all__ = [
    "NOTABLE_BIAS",
    "Difference",
    "Replicates",
    "Resampled",
    "holm",
    "interval",
    "on_logit_scale",
    "paired",
    "pooled",
    "replicates",
]
