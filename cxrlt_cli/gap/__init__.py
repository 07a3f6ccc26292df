"""How far the score on dev flatters the score on test: each reason estimated by itself, all of them in one waterfall.

Without torch. Nothing here reads files; ``commands.evaluate.gap_inputs`` gathers what is known about a run.
"""

from .choice import Choice, optimism
from .evidence import FEWEST, Decided, Dev, Target, judged_classes
from .figures import FIGURES, Judged, apart, point, resampled
from .waterfall import BUILT_IN, COMPONENTS, Gap, Step, Waterfall, gap

__all__ = [
    "BUILT_IN",
    "COMPONENTS",
    "FEWEST",
    "FIGURES",
    "Choice",
    "Decided",
    "Dev",
    "Gap",
    "Judged",
    "Step",
    "Target",
    "Waterfall",
    "apart",
    "gap",
    "judged_classes",
    "optimism",
    "point",
    "resampled",
]
