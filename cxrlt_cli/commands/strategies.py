"""The test-time augmentation of a run: which one, and whether its network can read the views."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from cxrlt_cli.commands.opening import OpenRun
from cxrlt_cli.errors import PluginError, UsageError

if TYPE_CHECKING:
    from cxrlt_cli.contracts import TestTimeAugmentation
    from cxrlt_cli.recipe.schema import PluginRef, Recipe
    from cxrlt_cli.registry import Reference

#: The value of ``--tta`` that chooses on dev.
AUTO = "auto"


def strategy_name(run: OpenRun, tta: str | None) -> str:
    """The name given, or that of the recipe's strategy."""
    return tta if tta is not None else str(run.card.tta["name"])


def strategy_of(run: OpenRun, tta: str | None, force: bool = False) -> TestTimeAugmentation:
    """The strategy of that name, with the recipe's options where it is the recipe's own.

    Args:
        run: the run.
        tta: a plugin of ``cxrlt.tta``; None for the recipe's.
        force: also where its views need an augmentation that training did not have.

    Raises:
        PluginError: there is no such plugin, it is broken, or it breaks its contract.
        UsageError: a view needs an augmentation that training did not have.
    """
    own = run.card.tta
    strategy = _built(own if tta in {None, own["name"]} else {"name": tta}, strategy_name(run, tta))
    lacking = unseen(run, strategy)
    if lacking and not force:
        raise UsageError(
            f"the test-time augmentation {strategy_name(run, tta)!r} needs a network trained with "
            f"{', '.join(lacking)}, and this one never saw that (look at its views {_views(strategy, lacking)})",
            where=str(run.dir.path),
            cure=f"Use --tta none, train with augment.{' and augment.'.join(lacking)}, or insist with --force.",
        )
    return strategy


def check_named(tta: str | None, cure: str) -> None:
    """Refuse ``auto`` where one strategy has to be named.

    Raises:
        UsageError: it is ``auto``.
    """
    if tta == AUTO:
        raise UsageError("the test-time augmentation 'auto' is a choice that `cxrlt predict` makes", cure=cure)


def check_strategy(recipe: Recipe, other: PluginRef | None = None, where: str = "predict.tta") -> None:
    """Make sure, before training, that a strategy can be built, and that the network will see its views.

    Args:
        recipe: to train.
        other: the strategy; None for the recipe's own.
        where: it is named.

    Raises:
        PluginError: its options make no sense, it is broken, or it breaks its contract.
        UsageError: a view needs an augmentation that the recipe does not have.
    """
    from cxrlt_cli.data.augment import seen

    own = other or recipe.predict.tta
    strategy = _built(own, own.name)
    lacking = _lacking(strategy, seen(recipe.augment))
    if lacking:
        keys = f"augment.{' and augment.'.join(lacking)}"
        raise UsageError(
            f"the test-time augmentation {own.name!r} needs {keys}, which training would not have (look at its views "
            f"{_views(strategy, lacking)})",
            where=where,
            cure=f"Give {keys} a size, or choose another test-time augmentation.",
        )


def _built(ref: Reference, name: str) -> TestTimeAugmentation:
    """The strategy, which has to keep the rules of the conformance kit: one that does not would be wrong in silence.

    A first view that is not the image, or one that writes to the images it shares with others, gives plausible numbers.
    """
    from cxrlt_cli.registry import build, find
    from cxrlt_cli.testing import broken_views

    strategy: TestTimeAugmentation = build("tta", ref)
    fault = broken_views(strategy)
    if fault is not None:
        plugin = find("tta", name)
        raise PluginError(
            f"{plugin} breaks the rule '{fault.rule.replace('_', ' ')}': {fault.message}",
            cure=f"Name another one; `cxrlt plugins check {plugin.qualified}` tells its author more.",
        )
    return strategy


def unseen(run: OpenRun, strategy: TestTimeAugmentation) -> list[str]:
    """The training augmentations that the views need and the run did not have, in alphabetical order."""
    return _lacking(strategy, run.card.augment)


def _lacking(strategy: TestTimeAugmentation, seen: Iterable[str]) -> list[str]:
    needed = frozenset().union(*(view.needs for view in strategy.views))
    return sorted(needed - set(seen))


def _views(strategy: TestTimeAugmentation, lacking: Collection[str]) -> str:
    """Those that need what is lacking, three at most by name."""
    views = [view.name for view in strategy.views if view.needs & set(lacking)]
    return ", ".join(map(repr, views[:3])) + (f" and {len(views) - 3} more" if len(views) > 3 else "")
