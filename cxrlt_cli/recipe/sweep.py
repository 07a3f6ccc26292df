"""The sweep: a table of recipes that differ in a few keys, trained several times each.

What is checked here is the table itself. Every row becomes a recipe of its own, which ``load.load_recipe`` checks.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cxrlt_cli.recipe.schema import Count, Strict
from cxrlt_cli.wording import did_you_mean

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Settings = dict[str, Any]


class Again(Strict):
    """A head recipe and what is changed in it."""

    recipe: str = Field(description="a head recipe: a path from the table's folder, or a shipped name such as crt")
    set: Settings = Field({}, description="keys of the head recipe and their values: {train.epochs: 20}")


def _named(value: object) -> object:
    return {"recipe": value} if isinstance(value, str) else value


class Row(Strict):
    """One row of the table."""

    name: Name = Field(description="of the row; its runs are called NAME-SEED")
    about: str = Field("", description="what the row is for; printed in the table's notes")
    recipe: str | None = Field(None, description="the row's own recipe in place of base")
    set: Settings = Field({}, description="keys of the recipe and their values: {loss: asl, optim.lr: 3e-4}")
    of: str | None = Field(None, description="build on the runs of this row instead of training")
    retrain: Annotated[Again | None, BeforeValidator(_named)] = Field(
        None, description="re-train the head of the row's runs, with this head recipe"
    )
    tta: str | None = Field(None, description="test-time augmentation the row is scored with; default: the recipe's")

    @model_validator(mode="after")
    def _of_trains_nothing(self) -> Row:
        if self.of is not None and (self.set or self.recipe):
            raise ValueError(
                f"'{self.name}' builds on '{self.of}', which is trained already: 'set' and 'recipe' go there"
            )
        return self


class Sweep(Strict):
    """A whole table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "", validate_default=False, description="name of the folder of runs; default: the name of the file"
    )
    about: str = Field("", description="what the table is for")
    base: str | None = Field(None, description="the recipe of every row: a path from the table's folder, or a name")
    set: Settings = Field({}, description="changes of the recipe that every row has")
    rows: list[Row] = Field([], description="the rows; with axes, each in every combination")
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="keys of the recipe and the values they take; every combination is a row"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = Field(
        [0], description="every row is trained with each of these as train.seed"
    )
    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="every row is trained with each of these as data.fold, and scored on the fold left out"
    )
    reference: str | None = Field(None, description="the row the others are compared with; default: the first")
    split: Literal["dev", "test"] = Field("dev", description="images the table is scored on")
    resamples: Count = Field(1000, description="bootstrap resamples of patients")

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, slots=True)
class Expanded:
    """A row in one combination of the axes.

    Attributes:
        name: unique in the table.
        row: the row as written.
        place: number of the row, None for a row that only the axes make.
        axes: keys of the recipe -> number of the value on that axis.
        of: name of the expanded row it builds on.
    """

    name: str
    row: Row
    place: int | None
    axes: dict[str, int]
    of: str | None


def expand(sweep: Sweep) -> list[Expanded]:
    """Every row of the table in every combination of its axes, in the order of the file; the last axis runs fastest."""
    written: list[tuple[int | None, Row | None]] = [*enumerate(sweep.rows)] or [(None, None)]
    found = []
    for place, row in written:
        for combination in _combinations(sweep):
            ending = "_".join(_label(key, sweep.axes[key][index]) for key, index in combination.items())
            name = "_".join(filter(None, (row.name if row else "", ending)))
            of = "_".join(filter(None, (row.of, ending))) if row and row.of else None
            found.append(Expanded(name, row or Row.model_construct(name=name), place, combination, of))
    return found


def repetitions(sweep: Sweep) -> list[tuple[str, Settings]]:
    """(ending of the run's name, settings) of each training of a row: its seeds, its folds, or both."""
    seeds = [(f"{seed}", {"train.seed": seed}) for seed in sweep.seeds]
    if sweep.folds is None:
        return seeds
    folds = [(f"fold{fold}", {"data.fold": fold}) for fold in sweep.folds]
    many = len(seeds) > 1
    return [(f"{f}-{s}" if many else f, {**fold, **seed}) for (f, fold) in folds for (s, seed) in seeds]


def _combinations(sweep: Sweep) -> Iterator[dict[str, int]]:
    for chosen in itertools.product(*(range(len(values)) for values in sweep.axes.values())):
        yield dict(zip(sweep.axes, chosen, strict=True))


def _label(key: str, value: Any) -> str:
    """``lr-0.001`` for optim.lr: 1e-3; a mapping by its values."""
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return f"{key.rpartition('.')[2]}-" + re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def _problems(sweep: Sweep) -> Iterator[str]:
    if not sweep.rows and not sweep.axes:
        yield "a sweep needs rows or axes"
    if sweep.base is None and not sweep.rows:
        yield "the key 'base' is missing: the recipe that the axes change"
    without = [row.name for row in sweep.rows if row.recipe is None and row.of is None]
    if sweep.base is None and without:
        yield f"{_listed(without)}: no recipe; give the table a 'base' or the row a 'recipe'"
    chosen = [row.name for row in sweep.rows if row.tta == "auto"]
    if chosen:
        yield f"{_listed(chosen)}: 'tta: auto' would choose anew for every run; name a test-time augmentation"
    yield from _repeated(sweep)
    rows = expand(sweep)
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield f"the row name stands twice: {_listed(twice)}"
    for number, row in enumerate(rows):
        if row.of is not None and row.of not in names[:number]:
            yield f"'{row.name}' builds on '{row.of}', which is no row above it.{did_you_mean(row.of, names[:number])}"
    if sweep.reference is not None and sweep.reference not in names:
        yield f"the reference '{sweep.reference}' is no row.{did_you_mean(sweep.reference, names)}"


def _repeated(sweep: Sweep) -> Iterator[str]:
    for key, values in (("seeds", sweep.seeds), ("folds", sweep.folds or [])):
        if len(set(values)) < len(values):
            yield f"a value of '{key}' stands twice"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
