"""The dataset source ``csv``: any label table and a folder of image files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxrlt_cli.contracts import PluginFault, PrepareRequest, SourceTable

from .tabular import columns
from .tabular.images import Found, find_images
from .tabular.sheet import Sheet, read_sheet, shown

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TableSource:
    """Images that lie in files."""

    table: SourceTable


def build(
    request: PrepareRequest,
    *,
    id: str = "",
    group: str = "",
    group_pattern: str = "",
    classes: str = "",
    view: str = "",
    study: str = "",
    split_column: str = "",
    suffix: str = "",
) -> TableSource:
    """A label table (CSV, TSV or Parquet, also compressed) and a folder of images.

    Cells are 1, 0, and -1 or empty for unknown. Columns are found by their usual names, classes by their content; what
    was found is said before work starts. The table is read as text: identifiers stay what they are.

    Args:
        request: ``labels`` and ``images`` are needed.
        id: Column of image identifiers, which are file names with or without ending, or paths below the images folder.
        group: Column of patients, which are never split up; image_id states that every image is a patient of its own.
        group_pattern: Regular expression whose first group is the patient, applied to the group column.
        classes: Class columns, separated by commas, or a file with one a line; default: every column of labels.
        view: Column of the projection (PA, AP, lateral).
        study: Column of study identifiers.
        split_column: Column with train, dev (or val) and test; default: the column called split, if there is one.
        suffix: Ending to add to identifiers to get file names, such as .png.
    """
    labels_file, images = _files(request)
    sheet = read_sheet(labels_file)
    id_column = _id_column(sheet, id)
    group_column = _group_column(sheet, group, id_column)
    patients = _patients(sheet, group_column, group_pattern, id_column)
    roles = _roles(sheet, view, study, split_column, {id_column, group_column})
    taken = {id_column, group_column, *roles.values()}
    names = columns.stated_classes(sheet, classes) if classes else columns.found_classes(sheet, taken)
    labels = columns.labels_of(sheet, names)
    found = find_images(images.absolute(), sheet.columns[id_column], suffix)
    extra = _further(sheet, taken.union(names))
    views, strange = columns.views_of(sheet.columns[roles["view"]]) if "view" in roles else (None, {})
    notes = [
        _column_note(id_column, group_column, group_pattern, roles),
        _class_note(names, bool(classes)),
        *_label_notes(sheet, names, labels),
        *_other_notes(sheet, found, strange, extra),
    ]
    return TableSource(
        SourceTable(
            classes=tuple(names),
            image_id=sheet.columns[id_column],
            patient_id=patients,
            labels=labels,
            path=found.paths,
            study_id=sheet.columns[roles["study"]] if "study" in roles else None,
            view=views,
            split=columns.splits_of(sheet, roles["split"]) if "split" in roles else None,
            extra=extra,
            notes=tuple(notes),
        )
    )


def _files(request: PrepareRequest) -> tuple[Path, Path]:
    """The label table and the folder of images."""
    if request.labels is None:
        raise PluginFault("a label table is needed", where="--labels", cure="Give it with --labels FILE.")
    if request.images is None:
        raise PluginFault("a folder of images is needed", where="--images", cure="Give it with --images DIR.")
    return request.labels, request.images


def _further(sheet: Sheet, used: set[str]) -> dict[str, list[str]]:
    """The columns that are neither used nor empty."""
    return {name: cells for name, cells in sheet.columns.items() if name not in used and any(cells)}


# -- identifiers ---------------------------------------------------------------------------------------------------


def _id_column(sheet: Sheet, wanted: str) -> str:
    column = sheet.named(wanted, "--id") if wanted else columns.usual(sheet, columns.IMAGE)
    if not column:
        raise PluginFault(
            "no column has a usual name of image identifiers",
            where=str(sheet.path),
            cure=f"Name it with --id. The columns are: {shown(sheet.columns)}.",
        )
    columns.refuse_empty(sheet, column, "the image identifier", "Fill it in, or choose another column with --id.")
    columns.refuse_scientific(
        sheet, column, "Read the true identifiers as text from the table they come from, or name another column: --id."
    )
    columns.refuse_repeated(sheet, column)
    return column


def _group_column(sheet: Sheet, wanted: str, id_column: str) -> str:
    """The column that tells patients apart, checked."""
    if wanted == "image_id" and wanted not in sheet.columns:
        return id_column
    column = sheet.named(wanted, "--group") if wanted else columns.usual(sheet, columns.PATIENT, {id_column})
    if not column:
        raise PluginFault(
            "no column has a usual name of patient identifiers, so that images of a patient would be split up",
            where=str(sheet.path),
            cure="Name it with --group, or state with --group image_id that every image is a patient of its own. "
            f"The columns are: {shown(sheet.columns)}.",
        )
    columns.refuse_empty(sheet, column, "the patient identifier", "Fill it in, or choose another column with --group.")
    columns.refuse_scientific(sheet, column, _group_cure(sheet, id_column))
    return column


def _group_cure(sheet: Sheet, id_column: str) -> str:
    cure = "Read the true identifiers as text from the table they come from, or group by another column with --group"
    if all("_" in name for name in sheet.columns[id_column]):
        cure += (
            f"; --group {id_column} --group-pattern '^([^_]+)_' groups by the part of the image name before the first "
            "'_', which is the study in PadChest (other studies of a patient may then fall into another split)"
        )
    return cure + "."


def _patients(sheet: Sheet, column: str, pattern: str, id_column: str) -> list[str]:
    cells = sheet.columns[column]
    if not pattern:
        return cells
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise PluginFault(
            f"{pattern!r} is not a regular expression: {error}", where="--group-pattern", cure="Correct it."
        ) from error
    if expression.groups < 1:
        raise PluginFault(
            f"{pattern!r} has no group", where="--group-pattern", cure="Put the part that is the patient in (...)."
        )
    patients = []
    for row, cell in enumerate(cells):
        match = expression.search(cell)
        if not match or not match[1]:
            raise PluginFault(
                f"{cell!r} does not match {pattern!r}", where=sheet.at(row, column), cure="Correct --group-pattern."
            )
        patients.append(match[1])
    return patients


def _roles(sheet: Sheet, view: str, study: str, split: str, taken: set[str]) -> dict[str, str]:
    """The columns of view, study and split, where there are any."""
    roles = {
        "view": sheet.named(view, "--view") if view else columns.usual(sheet, columns.VIEW, taken),
        "study": sheet.named(study, "--study") if study else columns.usual(sheet, columns.STUDY, taken),
        "split": sheet.named(split, "--split-column") if split else columns.usual(sheet, columns.SPLIT, taken),
    }
    if roles["study"] and columns.is_scientific(sheet.columns[roles["study"]]):
        if study:
            columns.refuse_scientific(sheet, study, "Leave --study out, or name another column.")
        roles["study"] = ""
    if roles["split"] and not split and not columns.are_splits(sheet.columns[roles["split"]]):
        roles["split"] = ""
    return {role: column for role, column in roles.items() if column}


# -- notes ---------------------------------------------------------------------------------------------------------


def _column_note(id_column: str, group_column: str, pattern: str, roles: dict[str, str]) -> str:
    group = f"{group_column!r} by {pattern}" if pattern else repr(group_column)
    if group_column == id_column and not pattern:
        group = "every image is a patient of its own"
    parts = [f"images {id_column!r}", f"patients {group}", *(f"{role} {name!r}" for role, name in roles.items())]
    return "columns: " + ", ".join(parts)


def _class_note(names: list[str], stated: bool) -> str:
    how = "stated" if stated else "found by their values (choose others with --classes)"
    return f"{len(names)} class columns {how}: {', '.join(names)}"


def _label_notes(sheet: Sheet, names: list[str], labels: npt.NDArray[np.int8]) -> list[str]:
    notes = []
    empty = columns.empty_cells(sheet, names)
    if empty:
        listed = shown((f"{name} {count}" for name, count in empty.items()), 8)
        notes.append(f"{sum(empty.values())} empty labels are taken as unknown (-1), not as negative: {listed}")
    minus = int((labels == -1).sum()) - sum(empty.values())
    if minus:
        notes.append(f"{minus} labels of -1 are unknown: they are left out of loss and metrics")
    return notes


def _other_notes(sheet: Sheet, found: Found, strange: dict[str, int], extra: dict[str, list[str]]) -> list[str]:
    notes = []
    if "split" in extra:
        notes.append("the column 'split' is not used: it holds other values than train, dev (or val) and test")
    if found.missing:
        notes.append(f"{found.missing} of {len(found.paths)} images have no file")
    if found.other_ending:
        notes.append(f"{found.other_ending} images lie in a file with another ending than the table says")
    if strange:
        listed = shown((f"{name!r} {count}" for name, count in strange.items()), 8)
        notes.append(f"views other than PA, AP and lateral are taken as unknown: {listed}")
    if extra:
        notes.append(f"further columns kept: {shown(extra)}")
    empty = [name for name, cells in sheet.columns.items() if not any(cells)]
    if empty:
        notes.append(f"empty columns left out: {shown(empty)}")
    return notes
