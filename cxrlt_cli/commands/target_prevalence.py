"""``--target-prevalence``: how frequent findings are among the images at hand, stated or estimated."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.decisions import Decisions, check_enough, estimate_prevalence, left_open
from cxrlt_cli.errors import UsageError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.wording import nearest

Array = npt.NDArray[np.float64]

#: The value of ``--target-prevalence`` that asks for an estimate.
ESTIMATE = "estimate"
_OPTION = "--target-prevalence"
#: Classes named one by one in a warning.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Target:
    """What was said about the prevalence.

    Attributes:
        stated: (C,) in (0, 1), nan for classes that were not named; None to estimate all of them.
    """

    stated: Array | None

    def check(self, images: int) -> None:
        """Make sure that there are images enough for an estimate, where one is wanted.

        Raises:
            DataError: there are too few.
        """
        if self.stated is None:
            check_enough(images)

    def apply(self, decisions: Decisions, log_odds: Array, emit: Emit) -> Decisions:
        """Decisions for images with log-odds (N, C), after the link, and this prevalence.

        A warning names the classes of which the images say too little for an estimate.
        """
        if self.stated is not None:
            return decisions.under(self.stated)
        v, old = decisions.log_odds(log_odds), decisions.prevalence
        share = estimate_prevalence(v, old)
        names = [decisions.classes[c] for c in np.flatnonzero(left_open(v, old, share))]
        if names:
            emit(_open(names, len(decisions.classes)))
        return decisions.under(share)


def _open(names: Sequence[str], classes: int) -> Notice:
    some = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    text = f"estimates of prevalence may be off by more than a factor of two for {len(names)} of {classes} classes"
    return Notice(f"{text}: {some}. State those you know, as in {_OPTION} CLASS=0.05.", "warning")


def parse_target(text: str, classes: Sequence[str]) -> Target:
    """Read ``estimate``, ``CLASS=VALUE,CLASS=VALUE``, or the name of a file.

    A file is a JSON mapping of classes to numbers (ending in ``.json``), or a CSV table whose first column is the class
    and whose second is the prevalence; a first line that holds no number is a header.

    Raises:
        UsageError: a class is unknown or stands twice, a number is not between 0 and 1, or the file cannot be read.
    """
    if text.strip() == ESTIMATE:
        return Target(None)
    is_file = os.path.isfile(text)  # Path.is_file() fails on a text longer than the name of a file can be
    pairs = list(_from_file(Path(text)) if is_file else _from_text(text))
    values = np.full(len(classes), np.nan)
    for name, number in pairs:
        if name not in classes:
            guess = nearest(name, classes)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise UsageError(f"the run has no class {name!r}.{hint}", where=_OPTION, cure="Classes go by their names.")
        place = list(classes).index(name)
        if not np.isnan(values[place]):
            raise UsageError(f"the class {name!r} stands twice", where=_OPTION)
        values[place] = _share(name, number)
    if not pairs:
        raise UsageError("no prevalence is stated", where=f"{_OPTION} {text}", cure=_CURE)
    return Target(values)


_CURE = f"Write {_OPTION} 'Mass=0.02,Hernia=0.01', the name of a file, or {_OPTION} {ESTIMATE}."


def _from_text(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        if not equals:
            raise UsageError(f"{part.strip()!r} is neither CLASS=VALUE nor a file", where=_OPTION, cure=_CURE)
        yield name.strip(), number


def _from_file(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            yield from ((str(name), str(value)) for name, value in dict(json.loads(text)).items())
            return
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), cure=_CURE) from error
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise UsageError(f"the line {','.join(row)!r} is not CLASS,VALUE", where=str(path), cure=_CURE)
        if number or _is_number(row[1]):
            yield row[0].strip(), row[1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _share(name: str, text: str) -> float:
    value = float(text) if _is_number(text) else float("nan")
    if not 0 < value < 1:
        raise UsageError(
            f"the prevalence {text.strip()!r} of {name!r} is not a number between 0 and 1",
            where=_OPTION,
            cure="It is a share of the images: 0.02 for two in a hundred.",
        )
    return value
