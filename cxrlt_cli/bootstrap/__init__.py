"""The patient-clustered bootstrap: every figure in resamples of the patients, intervals, and paired comparisons.

Patients are the clusters, since images of one patient are alike; a resample is a whole weight for each image, so
nothing is sorted twice (DESIGN 11). numpy, and scipy for Student's t.
"""

from .inference import Difference, Resampled, bias_note, holm, note_of, p_text, paired, pooled
from .intervals import interval, on_logit_scale
from .resampling import Replicates, replicates

__all__ = [
    "Difference",
    "Replicates",
    "Resampled",
    "bias_note",
    "holm",
    "interval",
    "note_of",
    "on_logit_scale",
    "p_text",
    "paired",
    "pooled",
    "replicates",
]
