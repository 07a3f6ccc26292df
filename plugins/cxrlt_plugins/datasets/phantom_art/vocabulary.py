"""The thirty classes of CXR-LT 2026, how often they occur, and which findings go together.

Counts are positives in a 128,815-image training split of the challenge's label table (PadChest; arXiv 2602.22092).
Loadings are ours: rough clinical plausibility, not estimates from any data.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Images of the split the counts below refer to.
PUBLISHED_IMAGES = 128_815

#: Class -> published positives, in the order of the challenge's label table.
PUBLISHED: dict[str, int] = {
    "Normal": 43585,
    "aortic elongation": 8856,
    "cardiomegaly": 11537,
    "pleural effusion": 13277,
    "Nodule": 8248,
    "atelectasis": 7129,
    "pleural thickening": 3968,
    "aortic atheromatosis": 1508,
    "Support Devices": 8996,
    "alveolar pattern": 7161,
    "fracture": 3549,
    "Hernia": 1719,
    "Emphysema": 1323,
    "azygos lobe": 349,
    "Hydropneumothorax": 45,
    "Kyphosis": 3214,
    "Mass": 307,
    "Pneumothorax": 455,
    "Subcutaneous Emphysema": 181,
    "pneumoperitoneo": 56,
    "vascular hilar enlargement": 4544,
    "vertebral degenerative changes": 4591,
    "hyperinflated lung": 5439,
    "interstitial pattern": 7197,
    "central venous catheter": 5009,
    "hypoexpansion": 3216,
    "bronchiectasis": 2068,
    "hemidiaphragm elevation": 2754,
    "sternotomy": 2387,
    "calcified densities": 875,
}

#: All class names; ``Normal`` is the first.
CLASSES: tuple[str, ...] = tuple(PUBLISHED)

#: The 29 findings: every class but ``Normal``.
FINDINGS: tuple[str, ...] = CLASSES[1:]

#: Findings that stay with a patient: every study of the patient shows them.
LASTING: frozenset[str] = frozenset(
    {
        "aortic elongation", "aortic atheromatosis", "azygos lobe", "Kyphosis", "vertebral degenerative changes",
        "sternotomy", "calcified densities", "bronchiectasis", "Emphysema", "pleural thickening", "Hernia",
    }
)  # fmt: skip

#: The first finding rules out the second.
EXCLUSIONS: tuple[tuple[str, str], ...] = (("hyperinflated lung", "hypoexpansion"), ("Emphysema", "hypoexpansion"))

#: Hidden causes and how strongly they load on findings (correlations; the squares of a finding sum to less than 1).
LOADINGS: dict[str, dict[str, float]] = {
    "age": {
        "aortic elongation": 0.7, "aortic atheromatosis": 0.7, "vertebral degenerative changes": 0.6, "Kyphosis": 0.6,
        "cardiomegaly": 0.35, "Hernia": 0.45, "pleural thickening": 0.25, "fracture": 0.3, "sternotomy": 0.3,
        "Support Devices": 0.25, "calcified densities": 0.25, "Emphysema": 0.2, "Mass": 0.2,
    },
    "heart": {
        "cardiomegaly": 0.65, "vascular hilar enlargement": 0.55, "pleural effusion": 0.35, "interstitial pattern": 0.3,
        "sternotomy": 0.5, "Support Devices": 0.3, "alveolar pattern": 0.2,
    },
    "intensive care": {
        "Support Devices": 0.6, "central venous catheter": 0.7, "pleural effusion": 0.35, "atelectasis": 0.35,
        "alveolar pattern": 0.35, "Pneumothorax": 0.3, "Hydropneumothorax": 0.3, "Subcutaneous Emphysema": 0.4,
        "pneumoperitoneo": 0.45, "hypoexpansion": 0.45, "hyperinflated lung": -0.25, "sternotomy": 0.2,
    },
    "obstruction": {
        "hyperinflated lung": 0.75, "Emphysema": 0.75, "bronchiectasis": 0.3, "hypoexpansion": -0.35, "Nodule": 0.15,
        "vascular hilar enlargement": 0.2, "Pneumothorax": 0.2, "Kyphosis": 0.2,
    },
    "pleura": {
        "pleural effusion": 0.55, "atelectasis": 0.5, "hemidiaphragm elevation": 0.4, "pleural thickening": 0.4,
        "Hydropneumothorax": 0.6, "hypoexpansion": 0.25,
    },
    "infection": {
        "alveolar pattern": 0.5, "interstitial pattern": 0.5, "bronchiectasis": 0.5, "atelectasis": 0.15,
        "calcified densities": 0.3, "Nodule": 0.15,
    },
    "tumour": {"Mass": 0.65, "Nodule": 0.45, "pleural effusion": 0.15, "vascular hilar enlargement": 0.2},
    "air leak": {
        "Pneumothorax": 0.6, "Subcutaneous Emphysema": 0.65, "Hydropneumothorax": 0.5, "fracture": 0.35,
        "pneumoperitoneo": 0.3,
    },
}  # fmt: skip


def loading_matrix() -> npt.NDArray[np.float32]:
    """(29, causes): correlation of each finding's hidden variable with each hidden cause."""
    table = np.zeros((len(FINDINGS), len(LOADINGS)), dtype=np.float32)
    for column, finding_loadings in enumerate(LOADINGS.values()):
        for name, value in finding_loadings.items():
            table[FINDINGS.index(name), column] = value
    return table


def frequencies(floor: float) -> tuple[npt.NDArray[np.float64], float]:
    """((29,) share of images with each finding, share of ``Normal``).

    The published shares p become sqrt(p^2 + floor^2): common classes keep theirs, rare ones approach ``floor``, and
    the order of the classes is kept.
    """
    published = np.array([PUBLISHED[name] for name in FINDINGS]) / PUBLISHED_IMAGES
    return np.hypot(published, floor), PUBLISHED["Normal"] / PUBLISHED_IMAGES
