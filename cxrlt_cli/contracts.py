"""The contracts between the host and its plugins.

Everything here is a ``Protocol`` or a plain frozen dataclass: a plugin inherits nothing and imports nothing else of the
host. Shapes: B batch, C classes, D features, N images, H and W pixels.

A plugin is a *factory*, published through an entry point. Its positional parameters are handed over by the host, as
listed below; its keyword-only parameters are the *options* a recipe may set (they need annotations and defaults).

===================  ==================  ==========================================================================
entry-point group    kind                factory
===================  ==================  ==========================================================================
``cxrlt.losses``     ``losses``          ``build(stats, *, **options) -> Loss``
``cxrlt.backbones``  ``backbones``       ``build(in_chans, image_size, *, pretrained, **options) -> Backbone``
``cxrlt.heads``      ``heads``           ``build(width, stats, *, **options) -> Head``
``cxrlt.samplers``   ``samplers``        ``build(labels, stats, patients, seed, epochs, *, **options) -> Sampler``
``cxrlt.tta``        ``tta``             ``build(*, **options) -> TestTimeAugmentation``
``cxrlt.datasets``   ``datasets``        ``build(request, *, **options) -> Source``
===================  ==================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

#: Entry-point group of every kind of plugin.
GROUPS: Mapping[str, str] = {
    kind: f"cxrlt.{kind}" for kind in ("losses", "backbones", "heads", "samplers", "tta", "datasets")
}

#: How many positional parameters the host hands to a factory of each kind, by name.
HOST_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "losses": ("stats",),
    "backbones": ("in_chans", "image_size"),
    "heads": ("width", "stats"),
    "samplers": ("labels", "stats", "patients", "seed", "epochs"),
    "tta": (),
    "datasets": ("request",),
}

#: The value of a label that nobody stated.
UNKNOWN = -1


def frequency_group(share: float) -> str:
    """ "head", "medium" or "tail": above 10 %, 1 to 10 %, or below 1 % of positives in the training split."""
    return "head" if share > 0.10 else "medium" if share >= 0.01 else "tail"


class PluginFault(Exception):
    """Raised by a plugin for input it cannot use; the host shows it as one message.

    Args:
        what: what is wrong, with the offending value.
        where: file, row or column concerned.
        cure: what the user can do.
    """

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.cure = what, where, cure


@dataclass(frozen=True, slots=True)
class ClassStats:
    """Label counts of the training split, in class order.

    Attributes:
        names: the C class names.
        positives: images labelled 1, per class.
        negatives: images labelled 0, per class. Unknown labels are in neither.
    """

    names: tuple[str, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]

    @property
    def known(self) -> tuple[int, ...]:
        """Images with a known label, per class."""
        return tuple(p + n for p, n in zip(self.positives, self.negatives, strict=True))

    @property
    def share(self) -> tuple[float, ...]:
        """Share of positives among known labels, per class; 0 where no label is known."""
        return tuple(p / k if k else 0.0 for p, k in zip(self.positives, self.known, strict=True))

    @property
    def prevalence(self) -> tuple[float, ...]:
        """``share`` smoothed by half an image, so that it lies in (0, 1) and has log-odds."""
        return tuple((p + 0.5) / (k + 1) for p, k in zip(self.positives, self.known, strict=True))


@runtime_checkable
class Loss(Protocol):
    """A multi-label loss; in practice an ``nn.Module``.

    ``pointwise`` is true when the loss is a sum over entries (i, c) of a function of that entry's logit, target and
    class alone. Only such a loss has a posterior link; when the attribute is missing, it is taken as true and checked.
    ``stateful`` (default false) is true when the loss remembers earlier batches: in buffers, which change in training
    mode only and are saved with the run.
    """

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of the per-entry losses over the count of known entries.

        Args:
            logits: (B, C), any floating dtype; computed in float32 (float64 stays float64).
            targets: (B, C) in [0, 1]; soft targets are allowed. The value of an unknown entry is arbitrary.
            weight: (B, C) >= 0; 0 marks an unknown label. Carries re-weighting and deferral as well.

        Returns:
            A scalar; 0 with a zero gradient when no entry is known.
        """
        ...


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What a backbone expects: intensities in [0, 1] are mapped to ``(x - mean) / std``, one value a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Backbone(Protocol):
    """A feature extractor; in practice an ``nn.Module``.

    A backbone may offer ``layer_of(name: str) -> int`` and ``depth: int`` (0 is nearest the image, ``depth - 1`` the
    last block); without them a recipe's layer-wise learning-rate decay is refused. And ``pool(channels) -> features``,
    from a map of ``feature_map`` to what a call gives; without it, heat maps take the mean over places, and are refused
    where that is not what a call gives.
    """

    width: int
    preprocess: Preprocess

    def __call__(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W), preprocessed -> pooled features (B, D)."""
        ...

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W), preprocessed -> the map before pooling (B, D, h, w), for spatial heads."""
        ...


class Head(Protocol):
    """Features to logits; in practice an ``nn.Module``.

    ``spatial`` (default false) asks for the feature map (B, D, h, w) instead of pooled features (B, D). A parameter
    called ``bias`` of shape (C,), added to the logits, is initialised by the host to the class priors, mapped through
    the inverse posterior link of the loss.
    """

    def __call__(self, features: Tensor) -> Tensor:
        """(B, D), or (B, D, h, w) for a spatial head -> logits (B, C)."""
        ...


class Sampler(Protocol):
    """The order of an epoch.

    Its factory receives ``labels`` (N, C) int8 (1, 0, or -1 where unknown) and ``patients`` (N,) int64 of the training
    split, where equal codes are one patient; ``seed``; and ``epochs``, the length of the run, for samplers that change
    over it.

    A sampler may offer ``expected(epoch: int) -> (N,) float64``: how often it draws each image in that epoch on
    average over seeds. It is what the user is shown before training; without it the host counts the draws of some
    epochs.
    """

    def indices(self, epoch: int) -> npt.NDArray[np.int64]:
        """Positions in the training split, in order; pure in (seed, epoch), the same on every process.

        Every epoch has the same number of positions, not necessarily N, and 0 <= epoch: the steps of a run are counted
        before it begins. A sampler whose epochs differ in length by nature (stochastic rounding) rounds so that they
        do not. Positions that do not fill the last batch of an epoch are left out, so their order must be random.
        """
        ...


#: Where the outputs of views are merged: as logits, or as posteriors, which come back as logits through the link.
Space = Literal["logit", "posterior"]

#: How the outputs of views are merged; :class:`TestTimeAugmentation` says what each means.
Merge = Literal["mean", "median", "max", "geometric", "rank"]


@dataclass(frozen=True, slots=True)
class View:
    """One test-time view.

    Attributes:
        name: shown to the user.
        apply: (B, 1, H, W) intensities in [0, 1] -> the same shape and range; pure, row by row. Two views whose
            ``apply`` are equal and hashable objects are computed once, whichever strategies share them.
        needs: names of training augmentations the network must have seen ("flip", "rotate", "scale", ...).
        classes: the classes the view is valid for; None means all.
        projections: the image views (PA, AP, lateral) it is valid for; None means all.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    needs: frozenset[str] = frozenset()
    classes: frozenset[str] | None = None
    projections: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class TestTimeAugmentation:
    """Named views, the identity first, and how their outputs are merged, image by image and class by class.

    Views that are not valid for a class or an image stand aside there; the identity always counts. The merges:

    - ``mean``, ``median`` (of an even number: the mean of the two in the middle) and ``max``, in ``space``.
    - ``geometric``, of posteriors only: g / (g + h), where g is the geometric mean of the posteriors and h that of
      their complements (the logarithmic opinion pool; Genest and Zidek, Statistical Science 1986). It is the mean of
      the log-odds, and treats a finding and its absence alike.
    - ``rank``, of a whole set of images: each view ranks the images it is valid for (ties share their mean rank), the
      mean rank orders them, and the n-th image in that order receives the n-th of the identity's own logits. So the
      order is the merged one, and logits and posteriors keep the identity's distribution. What an image receives
      depends on the images beside it.

    Attributes:
        views: the first one is the identity.
        space: whether logits or posteriors are merged; ``max`` and ``rank`` are the same in both.
        merge: how.

    Raises:
        PluginFault: there is no view, two have one name, or a geometric mean of logits is asked for, which may be
            negative.
    """

    __test__ = False

    views: tuple[View, ...]
    space: Space = "logit"
    merge: Merge = "mean"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        names = [view.name for view in self.views]
        if not names or len(set(names)) < len(names):
            raise PluginFault(f"the views of a test-time augmentation need names of their own, not {names}")
        if self.merge == "geometric" and self.space == "logit":
            raise PluginFault("a geometric mean is one of posteriors", cure="Set the option 'space' to 'posterior'.")


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """What ``cxrlt prepare`` was asked for.

    Attributes:
        images: folder given with ``--images``, or None.
        labels: file given with ``--labels``, or None.
        size: side of the square prepared images, in pixels. Without ``--size`` it is 512, or the ``default_size`` that
            the source's factory carries as an attribute (``build.default_size = 128``).
        seed: seed of splits and of everything drawn.
    """

    images: Path | None
    labels: Path | None
    size: int
    seed: int


@dataclass(frozen=True, slots=True)
class SourceTable:
    """The label table of a source, by column; every column has N entries.

    Attributes:
        classes: the C class names, in order.
        image_id: unique, non-empty strings.
        patient_id: strings; images that share one never fall into different splits.
        labels: (N, C) int8: 1, 0, or -1 where unknown.
        path: file of each image, or None when the source draws its images itself.
        study_id: strings, empty where unknown.
        view: "PA", "AP", "lateral", or empty where unknown.
        split: "train", "dev", "test" as the source states it, or None when the host shall split.
        extra: further columns kept in the manifest (age, sex, true labels, ...), each with N entries.
        notes: lines shown before work starts (which columns were found, what was ignored).
    """

    classes: tuple[str, ...]
    image_id: Sequence[str]
    patient_id: Sequence[str]
    labels: npt.NDArray[np.int8]
    path: Sequence[str] | None = None
    study_id: Sequence[str] | None = None
    view: Sequence[str] | None = None
    split: Sequence[str] | None = None
    extra: Mapping[str, Sequence[object]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A source of labelled radiographs. Where the images are files, its table is all there is to it."""

    @property
    def table(self) -> SourceTable:
        """Every image and its labels."""
        ...


class DrawingSource(Source, Protocol):
    """A source that draws its images itself: its ``table.path`` is None. It is sent to worker processes."""

    def draw(self, index: int) -> npt.NDArray[np.uint8]:
        """Image ``index`` as (size, size) uint8, pure in (seed, index)."""
        ...
