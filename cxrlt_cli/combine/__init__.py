"""Several models as one: brought to one scale, combined in one of seven ways, judged out of fold.

numpy only. M members, N images, C classes; what goes in and comes out are log-odds.
"""

from .crossfit import CrossCombined, cross_combined
from .diversity import Pair, diversity
from .methods import COMBINATIONS, Combiner
from .scales import Scale
from .scores import Judge
from .search import greedy, on_the_simplex
from .stacking import stack
from .store import Ensemble, Member, read_ensemble, write_ensemble

__all__ = [
    "COMBINATIONS",
    "Combiner",
    "CrossCombined",
    "Ensemble",
    "Judge",
    "Member",
    "Pair",
    "Scale",
    "cross_combined",
    "diversity",
    "greedy",
    "on_the_simplex",
    "read_ensemble",
    "stack",
    "write_ensemble",
]
