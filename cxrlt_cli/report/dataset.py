"""The report of a prepared dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import frequency_group
from cxrlt_cli.data.audit import Duplicates, duplicate_notes
from cxrlt_cli.data.manifest import SPLITS
from cxrlt_cli.events import Table

from .page import page
from .svg import Bar, bars, heat_map

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a list in the report; the CSV files have all.
MOST = 40


def class_rows(counts: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], float]]:
    """Class, positives by split and training prevalence; the most frequent class first."""
    train = counts["train"]
    rows = []
    for name, positives in train["positives"].items():
        known = positives + train["negatives"][name]
        rows.append((name, tuple(counts[part]["positives"][name] for part in SPLITS), positives / max(1, known)))
    return sorted(rows, key=lambda row: (-row[1][0], -sum(row[1])))


def class_table(counts: Mapping[str, Any]) -> Table:
    """Positives by class and split, for the terminal."""
    rows = tuple(
        (name, *(f"{count:,}" for count in positives), f"{prevalence:.2%}", frequency_group(prevalence))
        for name, positives, prevalence in class_rows(counts)
    )
    note = "Prevalence in training; head above 10 %, medium 1 to 10 %, tail below 1 %."
    return Table(("class", *SPLITS, "prevalence", "group"), rows, title="Positives", note=note)


def split_table(counts: Mapping[str, Any]) -> Table:
    """Images and patients by split, for the terminal."""
    rows = tuple((part, f"{counts[part]['images']:,}", f"{counts[part]['patients']:,}") for part in SPLITS)
    return Table(("split", "images", "patients"), rows, title="Splits")


def absent_classes(counts: Mapping[str, Any]) -> list[str]:
    """A sentence for every split that has images but lacks positives of some classes."""
    found = []
    for part in SPLITS:
        lacking = [name for name, count in counts[part]["positives"].items() if count == 0]
        if lacking and counts[part]["images"]:
            found.append(f"{part}: {', '.join(lacking)}")
    return found


def render(
    info: Mapping[str, Any], rows: pa.Table, duplicates: Sequence[Duplicates], quarantine: Sequence[tuple[str, str]]
) -> str:
    """The page.

    Args:
        info: the content of dataset.json.
        rows: the manifest.
        duplicates: groups of images with equal pixels.
        quarantine: image and reason of every image left out.
    """
    from markupsafe import Markup

    labels = np.stack([rows[name].to_numpy() for name in info["classes"]], 1)
    split = np.array(rows["split"].to_pylist(), object)
    drawings = {
        "classes": _class_bars(info["counts"]),
        "views": _counted(rows["view"].to_pylist(), split, "Images by view", {"": "not stated"}),
        "bits": _counted([f"{bits} bits" for bits in rows["bits"].to_pylist()], split, "Images by bit depth"),
        "sizes": _counted(_sizes(rows), split, "Images by original size"),
        "co_occurrence": _co_occurrence(labels, info["classes"]),
    }
    return page(
        "dataset.html",
        info=info,
        splits=SPLITS,
        findings=float((labels == 1).sum(1).mean()),
        imbalance=_imbalance(info["counts"]),
        tiers=_tiers(info["counts"]),
        absent=absent_classes(info["counts"]),
        split_text=_split_text(info),
        split_rows=_split_rows(info["counts"], labels, split),
        folds=_folds(rows),
        size_text=_size_text(rows, info["image_size"]),
        duplicates=_duplicate_rows(rows, duplicates),
        duplicate_notes=duplicate_notes(duplicates),
        quarantine=quarantine,
        reasons=_reasons(quarantine),
        most=MOST,
        **{name: Markup(drawing) for name, drawing in drawings.items()},
    )


# -- drawings ------------------------------------------------------------------------------------------------------


def _class_bars(counts: Mapping[str, Any]) -> str:
    rows = [
        Bar(
            name,
            positives,
            f"{' · '.join(f'{count:,}' for count in positives)} · {prevalence:.2%} {frequency_group(prevalence)}",
        )
        for name, positives, prevalence in class_rows(counts)
    ]
    return bars(rows, title="Positives by class and split", log=True)


def _co_occurrence(labels: npt.NDArray[np.int8], classes: Sequence[str]) -> str:
    positive = (labels == 1).astype(np.int64)
    order = np.argsort(-positive.sum(0), kind="stable")
    together = (positive.T @ positive)[np.ix_(order, order)]
    own = np.diag(together)
    with np.errstate(invalid="ignore"):
        shares = together / np.where(own > 0, own, np.nan)[:, None]
    return heat_map([classes[index] for index in order], shares.tolist(), title="Share of images with both findings")


def _counted(
    values: Sequence[str], split: npt.NDArray[np.object_], title: str, names: Mapping[str, str] | None = None
) -> str:
    """Bars of how often each value occurs in each split; at most eight, the rest together."""
    most = [value for value, _ in Counter(values).most_common(8)]
    counts = {part: Counter(value for value, own in zip(values, split, strict=True) if own == part) for part in SPLITS}
    rows = []
    for value in most:
        each = tuple(counts[part][value] for part in SPLITS)
        rows.append(Bar((names or {}).get(value, value), each, f"{sum(each):,}"))
    others = tuple(sum(counts[part].values()) - sum(counts[part][value] for value in most) for part in SPLITS)
    if any(others):
        rows.append(Bar("others", others, f"{sum(others):,}"))
    return bars(rows, title=title)


# -- words and numbers ---------------------------------------------------------------------------------------------


def _sizes(rows: pa.Table) -> list[str]:
    pairs = zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)
    return [f"{width} x {height}" for width, height in pairs]


def _size_text(rows: pa.Table, size: int) -> str:
    longer = np.maximum(rows["width"].to_numpy(), rows["height"].to_numpy())
    small = int((longer < size).sum())
    text = f"The longer side has {longer.min():,} to {longer.max():,} pixels (median {np.median(longer):,.0f})."
    return text + (f" {small:,} images are smaller than {size} pixels and were enlarged." if small else "")


def _imbalance(counts: Mapping[str, Any]) -> str:
    """The most frequent over the rarest class that occurs in training."""
    present = [positives[0] for _, positives, _ in class_rows(counts) if positives[0]]
    return f"{present[0] / present[-1]:,.0f} : 1" if present else "none"


def _tiers(counts: Mapping[str, Any]) -> str:
    found = Counter(frequency_group(prevalence) for _, _, prevalence in class_rows(counts))
    return ", ".join(f"{found[name]} {name}" for name in ("head", "medium", "tail"))


def _split_text(info: Mapping[str, Any]) -> str:
    if info["split"]["by"] == "source":
        return "The splits are those the source states; no patient is in two of them."
    shares = ", ".join(f"{name} {share:.0%}" for name, share in info["split"]["shares"].items() if share)
    return (
        f"Patients were shared out ({shares}; seed {info['plan']['seed']}) so that no patient is in two splits and "
        "every finding has its share of each. Patients who share an image of equal pixels were kept together."
    )


def _split_rows(
    counts: Mapping[str, Any], labels: npt.NDArray[np.int8], split: npt.NDArray[np.object_]
) -> list[dict[str, Any]]:
    rows = []
    for part in (name for name in SPLITS if counts[name]["images"]):
        own, images = labels[split == part], counts[part]["images"]
        rows.append(
            {
                "name": part,
                "images": images,
                "patients": counts[part]["patients"],
                "per_patient": images / max(1, counts[part]["patients"]),
                "findings": float((own == 1).sum() / max(1, images)),
                "unknown": float((own == -1).sum() / max(1, own.size)),
            }
        )
    return rows


def _folds(rows: pa.Table) -> list[str]:
    """Images of each fold."""
    if "fold" not in rows.column_names:
        return []
    fold = rows["fold"].to_numpy()
    return [f"{int(count):,}" for count in np.bincount(fold[fold >= 0])]


def _duplicate_rows(rows: pa.Table, duplicates: Sequence[Duplicates]) -> list[dict[str, Any]]:
    names, patients = rows["image_id"].to_pylist(), rows["patient_id"].to_pylist()
    return [
        {
            "found": found,
            "images": [names[row] for row in found.rows],
            "patients": sorted({patients[row] for row in found.rows}),
        }
        for found in sorted(duplicates, key=lambda found: not found.leak)
    ]


def _reasons(quarantine: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Quarantined images by reason, the most frequent first; numbers in a reason do not tell reasons apart."""
    groups: dict[str, list[str]] = {}
    for image, reason in quarantine:
        groups.setdefault(reason.partition(" (")[0], []).append(image)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))[:MOST]
    return [{"reason": reason, "count": len(images), "examples": images[:3]} for reason, images in ordered]
