"""Multi-label metrics, per class and averaged, with unknown labels and absent classes treated openly.

Labels are (N, C): 1, 0, or -1 where unknown. An unknown label leaves its entry out of every figure. Ranking metrics use
scores (logits, say) and treat tied scores as one threshold, as scikit-learn does; the others use posteriors.
"""

from .calibration import BINS, brier, ece, flat_ece, recalibration
from .confusion import Confusion, confusion
from .evaluation import (
    ALL_GROUPS,
    GROUPS,
    NEED_POSITIVES,
    PER_CLASS,
    RARE,
    Absent,
    Evaluation,
    evaluate,
    group_of,
    macro,
    mean_defined,
    members,
)
from .ranking import Ranked, auroc, average_precision, rank

__all__ = [
    "ALL_GROUPS",
    "BINS",
    "GROUPS",
    "NEED_POSITIVES",
    "PER_CLASS",
    "RARE",
    "Absent",
    "Confusion",
    "Evaluation",
    "Ranked",
    "auroc",
    "average_precision",
    "brier",
    "confusion",
    "ece",
    "evaluate",
    "flat_ece",
    "group_of",
    "macro",
    "mean_defined",
    "members",
    "rank",
    "recalibration",
]
