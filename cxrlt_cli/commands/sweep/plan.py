"""A sweep as steps: what is trained, re-trained and predicted for each row, and in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.errors import CxrltError, PluginError, UsageError
from cxrlt_cli.recipe.load import Loaded, error_of, load, nested, override_node
from cxrlt_cli.recipe.nodes import Node, Place, scalar
from cxrlt_cli.recipe.retrain import Retrain
from cxrlt_cli.recipe.schema import PluginRef, Recipe
from cxrlt_cli.recipe.sections import HEAD, TRAIN
from cxrlt_cli.recipe.sources import locate
from cxrlt_cli.recipe.sweep import Again, Expanded, Sweep, expand, repetitions


@dataclass(frozen=True, slots=True)
class Step:
    """One command that makes something.

    Attributes:
        key: unique in the sweep; also the name of its log.
        kind: what it does.
        run: the run directory it writes to.
        arguments: of ``cxrlt``.
        needs: keys of the steps that have to be finished before.
        recipe: what a run made by it has to have been made with; of a prediction, the recipe behind its run.
        parent: of a re-trained head: the run whose head is replaced.
        tta: of a prediction: the test-time augmentation, None for the recipe's.
        split: of a prediction.
    """

    key: str
    kind: Literal["train", "retrain-head", "predict"]
    run: RunDir
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    recipe: Recipe | Retrain
    parent: RunDir | None = None
    tta: str | None = None
    split: str = ""

    @property
    def epochs(self) -> int:
        """How many lines ``metrics.jsonl`` will have; 1 for what has no epochs."""
        return self.recipe.train.epochs if self.kind != "predict" else 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: its runs, one a repetition, and how they are scored."""

    name: str
    about: str
    runs: tuple[RunDir, ...]
    tta: str | None
    needs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole sweep.

    Attributes:
        sweep: the table.
        out: directory of the runs and of the end table.
        split: images the table is scored on.
        steps: by key, each after the steps it needs.
        entries: rows in the order of the table.
    """

    sweep: Sweep
    out: Path
    split: str
    steps: Mapping[str, Step]
    entries: tuple[Entry, ...]

    @property
    def reference(self) -> str:
        """Name of the row the others are compared with."""
        return self.sweep.reference or self.entries[0].name


def make_plan(
    table: Loaded[Sweep], overrides: Sequence[str], out: Path | None = None, split: str | None = None
) -> Plan:
    """Every step of a sweep. Plugins are not looked at: ``check_plugins`` does that for what has to run.

    Args:
        table: a checked sweep.
        overrides: ``key=value`` texts laid over the recipe of every row.
        out: directory; default ``runs/<name of the sweep>``.
        split: images to score; default: the table's.

    Raises:
        UsageError: rows whose recipes are wrong; all of them at once.
    """
    where = out or Path("runs") / table.value.name
    builder = _Builder(table, _overlays_of(overrides), where, split or table.value.split)
    return builder.plan()


def check_plugins(steps: Sequence[Step], table: Loaded[Sweep]) -> None:
    """Check the plugins that steps name, their options, and what views need of trainings to come. Imports them.

    Raises:
        PluginError: one is missing, broken or was given wrong options; all of them at once.
        UsageError: a training will not show the views that a row is scored with.
    """
    from cxrlt_cli import registry

    found: dict[str, CxrltError] = {}
    by_key = {step.key: step for step in steps}
    for step in steps:
        form = HEAD if isinstance(step.recipe, Retrain) else TRAIN
        for dotted, kind in form.plugins.items():
            ref: Any = step.recipe
            for key in dotted.split("."):
                ref = getattr(ref, key)
            if ref is None or step.kind == "predict":
                continue
            try:
                registry.check_options(kind, ref, where=f"{table.path}: {step.run.name}: {dotted}")
            except PluginError as error:
                found.setdefault(error.what, error)
        try:
            if step.tta is not None:
                _check_views(step, step.tta, by_key)
        except (PluginError, UsageError) as error:
            found.setdefault(error.what, error)
    if found:
        raise together(list(found.values()))


def _check_views(step: Step, tta: str, steps: Mapping[str, Step]) -> None:
    """Of a prediction: that its strategy is there, and fits the training behind it where that is yet to come."""
    from cxrlt_cli import registry
    from cxrlt_cli.commands.strategies import check_strategy

    registry.resolve("tta", tta)
    while step.needs and step.needs[0] in steps:
        step = steps[step.needs[0]]
    if step.kind == "train" and isinstance(step.recipe, Recipe):
        check_strategy(step.recipe, PluginRef(name=tta), where=f"{step.run.name}: tta")


def together(errors: Sequence[CxrltError]) -> CxrltError:
    """One error for several of the same kind."""
    if len(errors) == 1:
        return errors[0]
    kind = type(errors[0]) if len({type(error) for error in errors}) == 1 else UsageError
    lines = [f"{error.where}: {error.what}" if error.where else error.what for error in errors]
    return kind("\n".join(lines), cure="\n".join(dict.fromkeys(error.cure for error in errors if error.cure)))


# -- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Setting:
    """One key with its value, as a tree for us and as ``--set`` for a child process."""

    dotted: str
    node: Node

    @property
    def tree(self) -> Node:
        return nested(self.dotted, self.node)

    @property
    def text(self) -> str:
        value = self.node.plain
        plain = isinstance(value, str) and scalar(value) == value and value[:1] not in {"[", "{", '"', "'"}
        return f"{self.dotted}={value if plain else json.dumps(value)}"


def _overlays_of(overrides: Sequence[str]) -> list[_Setting]:
    settings, problems = [], []
    for text in overrides:
        node, wrong = override_node(text)
        problems.extend(wrong)
        keys = []
        for key in text.partition("=")[0].strip().split("."):
            if isinstance(node.value, dict) and key in node.value:
                keys.append(key)
                node = node.value[key]
        settings.append(_Setting(".".join(keys), node))
    if problems:
        raise error_of(problems)
    return settings


def _settings(node: Node) -> list[_Setting]:
    """The entries of a ``set:`` mapping."""
    return [_Setting(key, value) for key, value in node.value.items()] if isinstance(node.value, dict) else []


def _constant(dotted: str, value: Any) -> _Setting:
    return _Setting(dotted, Node(value, Place(f"{dotted} of the repetition")))


def _arguments(settings: Sequence[_Setting]) -> Iterator[str]:
    for setting in settings:
        yield from ("--set", setting.text)


# -- from rows to steps ----------------------------------------------------------------------------------------------


@dataclass
class _Builder:
    table: Loaded[Sweep]
    overrides: Sequence[_Setting]
    out: Path
    split: str
    steps: dict[str, Step] = field(default_factory=dict)
    #: (row name, ending of the repetition) -> key of the step whose run the row has
    made: dict[tuple[str, str], str] = field(default_factory=dict)
    errors: list[CxrltError] = field(default_factory=list)

    def plan(self) -> Plan:
        sweep = self.table.value
        entries = [self._entry(row) for row in expand(sweep)]
        if self.errors:
            raise together(list({error.what: error for error in self.errors}.values()))
        return Plan(sweep, self.out, self.split, self.steps, tuple(entry for entry in entries if entry))

    def _entry(self, row: Expanded) -> Entry | None:
        runs, needs = [], []
        for ending, values in repetitions(self.table.value):
            step = self._run_of(row, ending, values)
            if step is None:
                return None
            self.made[row.name, ending] = step.key
            # decisions for other views are fitted on dev predictions with these views
            splits = {self.split, "dev"} if row.row.tta else {self.split}
            runs.append(step.run)
            needs.append(tuple(self._predict(step, split, row.row.tta).key for split in sorted(splits)))
        return Entry(row.name, row.row.about, tuple(runs), row.row.tta, tuple(needs))

    def _run_of(self, row: Expanded, ending: str, values: Mapping[str, Any]) -> Step | None:
        """The step that makes the row's run in one repetition; None when its recipe is wrong."""
        try:
            if row.of is not None:
                key = self.made.get((row.of, ending))
                step = self.steps[key] if key else None  # the row it builds on is wrong, which is told already
            else:
                name = f"{row.name}.joint" if row.row.retrain else row.name
                step = self._train(row, name, ending, values)
            return self._retrain(row, step, ending, values) if step and row.row.retrain else step
        except (UsageError, PluginError) as error:
            self.errors.append(error)
            return None

    def _train(self, row: Expanded, name: str, ending: str, values: Mapping[str, Any]) -> Step:
        root = self.table.root
        settings = _settings(root.at(("set",)) if self.table.value.set else Node({}, root.place))
        settings += [_Setting(key, root.at(("axes", key, index))) for key, index in row.axes.items()]
        settings += _settings(root.at(("rows", row.place, "set"))) if row.place is not None and row.row.set else []
        run = RunDir(self.out / f"{name}-{ending}")
        settings += [*self.overrides, *(_constant(key, value) for key, value in values.items())]
        settings.append(_constant("name", run.path.name))
        source = locate(row.row.recipe or self.table.value.base or "", beside=self.table.path.parent)
        recipe = load(TRAIN, source, overlays=[setting.tree for setting in settings], plugins=False).value
        arguments = ("train", str(source), *_arguments(settings), "--out", str(run.path))
        return self._add(Step(run.path.name, "train", run, arguments, (), recipe))

    def _retrain(self, row: Expanded, parent: Step, ending: str, values: Mapping[str, Any]) -> Step:
        again = row.row.retrain
        assert isinstance(again, Again)
        node = self.table.root.at(("rows", row.place or 0, "retrain", "set"))
        settings = _settings(node) if again.set else []
        run = RunDir(self.out / f"{row.name}-{ending}")
        settings += [_constant(key, value) for key, value in values.items() if key == "train.seed"]
        source = locate(again.recipe, beside=self.table.path.parent)
        recipe = load(HEAD, source, overlays=[setting.tree for setting in settings], plugins=False).value
        arguments = ("retrain-head", str(parent.run.path), str(source), *_arguments(settings), "--out", str(run.path))
        return self._add(Step(run.path.name, "retrain-head", run, arguments, (parent.key,), recipe, parent.run))

    def _predict(self, made: Step, split: str, tta: str | None) -> Step:
        how = ("--tta", tta) if tta else ()
        key = f"{made.key} on {split}" + (f" with {tta}" if tta else "")
        arguments = ("predict", str(made.run.path), "--split", split, *how, "--quiet")
        step = Step(key, "predict", made.run, arguments, (made.key,), made.recipe, tta=tta, split=split)
        return self.steps.get(key) or self._add(step)

    def _add(self, step: Step) -> Step:
        if step.key in self.steps:
            what = f"two rows would write to {step.run.path}"
            raise UsageError(what, where=str(self.table.path), cure="Give one of them another name.")
        self.steps[step.key] = step
        return step


def on_device(plan: Plan, device: str) -> Plan:
    """The same plan with every command on ``device``."""
    steps = {key: replace(step, arguments=(*step.arguments, "--device", device)) for key, step in plan.steps.items()}
    return replace(plan, steps=steps)
