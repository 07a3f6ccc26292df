"""The patient-clustered bootstrap: every figure in resamples of the patients, intervals, and paired comparisons.

numpy only. Patients are the clusters, since images of one patient are alike; a resample is a whole weight for each
image, so nothing is sorted twice (DESIGN 11).
"""

from .inference import Difference, holm, interval, interval_of, on_logit_scale, paired, reflected
from .resampling import Replicates, replicates

__all__ = [
    "Difference",
    "Replicates",
    "holm",
    "interval",
    "interval_of",
    "on_logit_scale",
    "paired",
    "reflected",
    "replicates",
]
