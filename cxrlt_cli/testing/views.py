"""Rules of ``cxrlt.tta``; the contract is ``cxrlt_cli.contracts.TestTimeAugmentation``."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import get_args

import torch
from torch import Tensor

from cxrlt_cli.contracts import Merge, Space, TestTimeAugmentation, View
from cxrlt_cli.recipe.schema import Augment
from cxrlt_cli.testing.rules import Broken, Rule, Subject

SIZE = 32
PROJECTIONS = frozenset({"PA", "AP", "lateral"})


def _views(subject: Subject) -> TestTimeAugmentation:
    strategy = subject.build()
    if not isinstance(strategy, TestTimeAugmentation):
        raise Broken(f"the factory returns a {type(strategy).__name__}, not a TestTimeAugmentation")
    return strategy


def _images() -> Tensor:
    return torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def begins_with_the_identity(subject: Subject) -> None:
    """The first view is the image as it is; the names of the views differ."""
    strategy, images = _views(subject), _images()
    if not strategy.views or not torch.equal(strategy.views[0].apply(images), images):
        raise Broken("the first view changes the image")
    names = [view.name for view in strategy.views]
    if len(set(names)) < len(names):
        raise Broken(f"two views share a name: {', '.join(names)}")


def keeps_shape_and_range(subject: Subject) -> None:
    """A view maps intensities (B, 1, H, W) in [0, 1] to the same shape, type and range."""
    images = _images()
    for view in _views(subject).views:
        for given in (images, torch.zeros_like(images), torch.ones_like(images)):
            seen = view.apply(given)
            if not isinstance(seen, Tensor):
                raise Broken(f"the view {view.name!r} makes a {type(seen).__name__}, not a tensor")
            if seen.shape != given.shape or seen.dtype != given.dtype:
                raise Broken(f"the view {view.name!r} makes {tuple(seen.shape)} {seen.dtype} of {tuple(given.shape)}")
            if not (seen.min() >= 0 and seen.max() <= 1):
                low, high = float(seen.min()), float(seen.max())
                raise Broken(f"the view {view.name!r} leaves [0, 1]: {low:.3g} to {high:.3g}; clamp before it returns")


def views_are_pure(subject: Subject) -> None:
    """A view gives the same result twice, does not write to its input, and draws nothing at random."""
    images = _images()
    kept, state = images.clone(), torch.get_rng_state()
    for view in _views(subject).views:
        if not torch.equal(view.apply(images), view.apply(images)):
            raise Broken(f"the view {view.name!r} gives another result the second time")
        if not torch.equal(images, kept):
            raise Broken(f"the view {view.name!r} writes to the images it is given")
    if not torch.equal(state, torch.get_rng_state()):
        raise Broken("a view draws from torch's global generator")


def images_are_seen_one_by_one(subject: Subject) -> None:
    """What a view makes of an image does not depend on the images beside it."""
    images = _images()
    for view in _views(subject).views:
        alone = torch.cat([view.apply(image[None]) for image in images])
        if not torch.allclose(alone, view.apply(images), atol=1e-6):
            raise Broken(f"the view {view.name!r} of an image depends on the batch around it")


def names_what_it_needs(subject: Subject) -> None:
    """`needs` names training augmentations that exist, so that cxrlt can refuse a view the network never saw."""
    known = set(Augment.model_fields)
    for view in _views(subject).views:
        _is_set(view, "needs", view.needs)
        unknown = sorted(set(view.needs) - known)
        if unknown:
            raise Broken(
                f"the view {view.name!r} needs {', '.join(unknown)}; augmentations: {', '.join(sorted(known))}"
            )


def says_where_it_is_valid(subject: Subject) -> None:
    """`classes` and `projections` are sets of names, or None for all; projections are PA, AP and lateral."""
    for view in _views(subject).views:
        for name, value in (("classes", view.classes), ("projections", view.projections)):
            if value is not None:
                _is_set(view, name, value)
        unknown = sorted(set(view.projections or ()) - PROJECTIONS)
        if unknown:
            raise Broken(f"the view {view.name!r} is for {', '.join(unknown)}; projections: PA, AP, lateral")


def _is_set(view: View, name: str, value: object) -> None:
    if not isinstance(value, Set):
        raise Broken(f"`{name}` of the view {view.name!r} is a {type(value).__name__}, not a frozenset")


def merges_as_the_host_can(subject: Subject) -> None:
    """`space` and `merge` are among those of the contract."""
    strategy = _views(subject)
    for name, allowed in (("space", get_args(Space)), ("merge", get_args(Merge))):
        if getattr(strategy, name) not in allowed:
            raise Broken(f"{name} is {getattr(strategy, name)!r}, not one of {', '.join(allowed)}")


RULES: Sequence[Rule] = (
    begins_with_the_identity,
    keeps_shape_and_range,
    views_are_pure,
    images_are_seen_one_by_one,
    names_what_it_needs,
    says_where_it_is_valid,
    merges_as_the_host_can,
)
