"""The head recipe: how ``cxrlt retrain-head`` makes another head for a trained network.

It is told from a training recipe by its key ``method``. As there, plugin options are checked against the plugin's own
signature, everything else here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cxrlt_cli.recipe.schema import Count, NotNegative, Optim, PluginRef, Positive, Ref, Reweight, Share, Strict

Method = Literal["crt", "lws", "tau-norm", "ncm", "logistic", "keep-best"]

_GRADIENT = frozenset({"loss", "sampler", "reweight", "optim", "train.epochs", "train.batch_size", "features.views"})
#: Sections that not every method reads, and the methods that do.
_READ: Mapping[str, frozenset[str]] = {
    "crt": _GRADIENT | {"head"},
    "lws": _GRADIENT,
    "tau-norm": frozenset({"tau"}),
    "ncm": frozenset({"ncm"}),
    "logistic": frozenset({"logistic"}),
    "keep-best": _GRADIENT | {"keep", "logistic"},
}


class Features(Strict):
    """The frozen backbone's features, computed once and kept in the run directory."""

    dtype: Literal["float16", "float32"] = Field("float16", description="type on disk of the training images' features")
    views: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="augmented copies of each training image, drawn as the run's augment says; 0: the plain image"
    )
    batch_size: Count | None = Field(None, description="images a forward pass; default: as the run's evaluation")


class HeadOptim(Strict):
    """AdamW and its schedule: linear warm-up, then cosine."""

    lr: Positive = Field(1e-3, description="learning rate")
    weight_decay: NotNegative = Field(1e-2, description="not applied to norms and biases")
    warmup: Share = Field(0.0, description="share of the training with a rising rate")
    final_lr: Share = Field(0.0, description="rate at the end, as a share of lr")
    clip: Positive | None = Field(None, description="largest norm of the gradient; null: no clipping")

    def full(self) -> Optim:
        """The same as the ``optim`` of a training recipe."""
        return Optim(**self.model_dump())


class HeadTrain(Strict):
    """The loop over cached features; the head of its last epoch is kept."""

    epochs: Count = Field(10, description="passes; nothing is chosen on dev, the last epoch counts")
    batch_size: Count = Field(512, description="images per optimiser step; all of them where there are fewer")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of weights, order, views, dropout and folds")


class Ncm(Strict):
    """The nearest class mean."""

    distance: Literal["euclidean", "cosine"] = Field("cosine", description="how far a feature is from a mean")


class Logistic(Strict):
    """One ridge-penalised logistic regression a class."""

    penalties: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        description="strengths tried, on squared weights of standardised features beside the mean log-loss",
    )
    folds: Annotated[int, Field(ge=2, le=100)] = Field(3, description="patient folds that choose between the strengths")
    min_positives: Annotated[int, Field(ge=1)] = Field(
        8, description="a class with fewer training positives (or negatives) gets its prior only"
    )
    max_iter: Count = Field(300, description="iterations of L-BFGS at most")


class Keep(Strict):
    """For each class the joint head or the re-trained one, whichever ranks the other patients' dev images better."""

    candidate: Literal["crt", "logistic"] = Field("crt", description="how the second head is trained")
    folds: Annotated[int, Field(ge=2, le=100)] = Field(5, description="patient folds that judge the choosing")


class Retrain(Strict):
    """A whole head recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "", validate_default=False, description="ending of the new run's name; default: the name of the file"
    )
    about: str = Field("", description="what the recipe is for")
    method: Method = Field(description="how the head is made")
    features: Features = Features()
    head: Ref | None = Field(None, description="a plugin of cxrlt.heads; default: the run's own, started anew")
    loss: Ref | None = Field(None, description="a plugin of cxrlt.losses; default: the run's own")
    sampler: Ref = Field(default=PluginRef(name="uniform"), description="a plugin of cxrlt.samplers")
    reweight: Reweight = Reweight()
    optim: HeadOptim = HeadOptim()
    train: HeadTrain = HeadTrain()
    tau: Annotated[float, Field(ge=0, le=4)] | None = Field(
        None, description="exponent of tau-norm; default: of 0, 0.1 ... 1 the one with the best dev macro F1"
    )
    ncm: Ncm = Ncm()
    logistic: Logistic = Logistic()
    keep: Keep = Keep()

    @model_validator(mode="after")
    def _nothing_idle(self) -> Retrain:
        """What a method does not read may not be set: it would be believed to have an effect."""
        for dotted in sorted(frozenset().union(*_READ.values()) - _READ[self.method]):
            section, _, key = dotted.partition(".")
            given, usual = getattr(self, section), type(self).model_fields[section].default
            if key:
                given, usual = getattr(given, key), getattr(usual, key)
            if given != usual:
                raise ValueError(f"the method '{self.method}' does not use '{dotted}'; leave it out")
        return self
