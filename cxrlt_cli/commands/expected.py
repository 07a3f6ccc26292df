"""What a sampler is expected to draw, shown before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_cli.events import Table

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.sampling import Draws
    from cxrlt_cli.recipe.schema import Recipe

#: Rows of the short table: the rarest classes and the most frequent ones.
RAREST, COMMONEST = 6, 4


@dataclass(frozen=True, slots=True)
class Expectation:
    """Expected draws of a run.

    Attributes:
        sampler: its name.
        stats: counts of the training images.
        first, last: of the first and the last epoch.
        busiest: largest number of expected draws of one patient in an epoch.
    """

    sampler: str
    stats: ClassStats
    first: Draws
    last: Draws
    busiest: float

    @property
    def steady(self) -> bool:
        """Whether the first epoch is as the last one."""
        return bool(np.allclose(self.first.positives, self.last.positives))


def expectation(recipe: Recipe, prepared: Prepared) -> Expectation | None:
    """The expected draws of a run, or None where the sampler draws every image once an epoch.

    Raises:
        CxrltError: the sampler, the batch or the rows cannot be used.
    """
    from cxrlt_cli.engine.parts import sampler_of, select_rows
    from cxrlt_cli.engine.plan import make_plan
    from cxrlt_cli.engine.sampling import expected_draws

    rows, train = select_rows(prepared, recipe), recipe.train
    sampler = sampler_of(prepared, rows, recipe)
    plan = make_plan(sampler, train, 1)
    first, last = (expected_draws(sampler, rows.labels, plan, epoch) for epoch in (0, train.epochs - 1))
    if all(np.ptp(draws.images) < 1e-9 for draws in (first, last)):
        return None
    codes = prepared.frame["patient_id"].iloc[rows.train].factorize()[0]
    busiest = max(float(np.bincount(codes, weights=draws.images).max()) for draws in (first, last))
    return Expectation(recipe.sampler.name, rows.stats, first, last, busiest)


def drawn(found: Expectation | None) -> dict[str, Any]:
    """For ``--json``: {"draws": ...} with all classes in their order, or nothing.

    The ratio of a class without positives is null.
    """
    if found is None:
        return {}
    classes = [
        {
            "class": name,
            "positives": found.stats.positives[number],
            **{
                epoch: {"positives": float(draws.positives[number]), "ratio": _ratio(draws, number)}
                for epoch, draws in (("first_epoch", found.first), ("last_epoch", found.last))
            },
        }
        for number, name in enumerate(found.stats.names)
    ]
    return {"draws": {"sampler": found.sampler, **_extremes(found), "classes": classes}}


def as_table(found: Expectation, *, short: bool) -> Table:
    """For people, the rarest class first.

    Args:
        found: what is expected.
        short: leave out the classes in the middle.
    """
    order = np.argsort(found.stats.positives, kind="stable").tolist()
    cut = short and len(order) > RAREST + COMMONEST + 1
    shown = [*order[:RAREST], None, *order[-COMMONEST:]] if cut else order
    columns = ("drawn in an epoch", "x its share") if found.steady else ("first epoch", "last epoch", "x its share")
    empty = ("...", *[""] * (len(columns) + 1))
    rows = tuple(empty if number is None else _row(found, number) for number in shown)
    facts = _extremes(found)
    note = (
        f"{facts['images']:,} images an epoch. At most an image comes {facts['most_of_an_image']:.1f} times, a patient "
        f"{facts['most_of_a_patient']:.1f} times; {facts['never_drawn']:,} of "
        f"{len(found.first.images):,} are never drawn."
    )
    if cut:
        note += f" {len(order)} classes; cxrlt train --dry-run shows all."
    return Table(("finding", "positives", *columns), rows, f"Expected draws of the sampler {found.sampler}", note)


def _row(found: Expectation, number: int) -> tuple[str, ...]:
    ratio = _ratio(found.last, number)
    drawn = [found.last] if found.steady else [found.first, found.last]
    return (
        found.stats.names[number],
        f"{found.stats.positives[number]:,}",
        *(f"{draws.positives[number]:,.0f}" for draws in drawn),
        "-" if ratio is None else f"{ratio:.2f}",
    )


def _ratio(draws: Draws, number: int) -> float | None:
    ratio = float(draws.ratio[number])
    return None if np.isnan(ratio) else ratio


def _extremes(found: Expectation) -> Mapping[str, Any]:
    most = np.maximum(found.first.images, found.last.images)
    return {
        "images": round(float(found.last.images.sum())),
        "most_of_an_image": float(most.max()),
        "most_of_a_patient": found.busiest,
        "never_drawn": int(np.count_nonzero(most == 0)),
    }
