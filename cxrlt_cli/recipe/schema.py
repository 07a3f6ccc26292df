"""The recipe: strict models of everything a training run is told.

A recipe is data one can take from a stranger: it holds names, numbers and paths, never code. Plugin options are checked
against the plugin's own signature by ``registry.py``; everything else is checked here.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A model without coercion and without unknown keys; an int is accepted where a float is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PluginRef(BaseModel):
    """A plugin by name, with its options beside the name: ``{name: ldam, scale: 30}`` or just ``ldam``."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: str = Field(min_length=1, description="name of the plugin, or distribution:name")

    @property
    def options(self) -> dict[str, Any]:
        """The options beside the name."""
        return dict(self.model_extra or {})


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Ref = Annotated[PluginRef, BeforeValidator(_named)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Data(Strict):
    """Which prepared dataset is read, and how."""

    path: str = Field(description="prepared dataset (a directory made by cxrlt prepare), from the current directory")
    fold: Annotated[int, Field(ge=0)] | None = Field(
        None, description="train on the other folds and use this one as dev (needs prepare --folds)"
    )
    size: Annotated[int, Field(ge=16, le=4096)] | None = Field(
        None, description="side in pixels the network sees; smaller than the prepared size is resized on the device"
    )
    views: list[str] | None = Field(None, description="train and evaluate on these image views only, such as [PA, AP]")


class Model(Strict):
    """Backbone and head."""

    backbone: Ref = Field(description="a plugin of cxrlt.backbones")
    head: Ref = Field(default=PluginRef(name="linear"), description="a plugin of cxrlt.heads")
    in_chans: Literal[1, 3] = Field(3, description="input channels; the grey image is repeated for 3")
    init_bias: Literal["prior", "zero"] = Field(
        "prior", description="start each output at the class prevalence (through the inverse posterior link), or at 0"
    )


class Reweight(Strict):
    """Per-class weights, applied by the host to any loss."""

    scheme: Literal["none", "inverse", "root-inverse", "effective"] = Field(
        "none", description="effective: the effective number of samples (arXiv 1901.05555, eq. 2)"
    )
    beta: Annotated[float, Field(ge=0, lt=1)] = Field(0.9999, description="of the effective number")
    start: Share = Field(0.0, description="deferral: the share of the run after which the weights switch on")
    apply_to: Literal["positives", "negatives", "both"] = Field("positives", description="entries that are weighted")
    relative_to: Literal["head", "mean", "raw"] = Field(
        "head", description="head: the most frequent class weighs 1; mean: weights average 1 (the published form)"
    )
    cap: Positive | None = Field(None, description="largest weight")
    lr_drop: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="multiply the learning rate by this from start on, as LDAM-DRW does (arXiv 1906.07413)"
    )

    @model_validator(mode="after")
    def _drop_is_deferred(self) -> Reweight:
        if self.lr_drop is not None and self.start == 0:
            raise ValueError("lr_drop lowers the learning rate from start on, and start is 0; set start, or lower lr")
        return self


class Augment(Strict):
    """Random changes of the training images, drawn per image, before normalisation."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="up to this many degrees either way")
    shift: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="up to this share of the side, each axis")
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="zoom by a factor in [1-s, 1+s]")
    flip: Share = Field(0.0, description="probability of a horizontal flip; it moves the heart")
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="add up to this much either way")
    contrast: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="multiply by [1-c, 1+c] about the mean")
    gamma: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="power in [1-g, 1/(1-g)], log-uniform")
    noise: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Gaussian noise, s.d. up to this")
    erase: Share = Field(0.0, description="probability of erasing one rectangle of 2 to 15 % of the area")


class Mix(Strict):
    """Mixing each training image with another one of its batch, labels included."""

    mixup: NotNegative = Field(0.0, description="blend, by a share from Beta(alpha, alpha) (arXiv 1710.09412); 0: off")
    cutmix: NotNegative = Field(
        0.0, description="paste a rectangle of area 1 - Beta(alpha, alpha) (arXiv 1905.04899); 0: off"
    )
    probability: Share = Field(1.0, description="of mixing an image; by either way at even odds where both are on")


class Optim(Strict):
    """AdamW and its schedule: linear warm-up, then cosine."""

    lr: Positive = Field(1e-4, description="learning rate of the backbone")
    head_lr: Positive | None = Field(None, description="learning rate of the head; default: lr")
    weight_decay: NotNegative = Field(1e-2, description="not applied to norms and biases")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.999], description="decay of the two moments"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="each layer's rate is this times the rate of the layer above it"
    )
    warmup: Share = Field(0.05, description="share of the run with a rising rate")
    final_lr: Share = Field(0.01, description="rate at the end, as a share of lr")
    clip: Positive | None = Field(1.0, description="largest norm of the gradient; null: no clipping")
    sam: Positive | None = Field(
        None, description="rho of sharpness-aware minimisation (arXiv 2010.01412); a step then costs two"
    )


class Ema(Strict):
    """Exponential moving average over steps, evaluated and saved in place of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.999, description="per optimiser step")
    warmup: bool = Field(True, description="decay_t = min(decay, (1 + t) / (10 + t))")


class Average(Strict):
    """Averaging of the weights, over steps and over epochs."""

    ema: Ema | None = Field(None)
    swa: Annotated[int, Field(ge=2)] | None = Field(
        None, description="save the mean of the last this many epochs instead of the best epoch (arXiv 1803.05407)"
    )
    soup: Annotated[int, Field(ge=2)] | None = Field(
        None, description="save the greedy soup of at most this many best epochs instead (arXiv 2203.05482)"
    )

    @model_validator(mode="after")
    def _one_final_average(self) -> Average:
        if self.swa is not None and self.soup is not None:
            raise ValueError("swa and soup both replace the saved weights; set one of them")
        return self


class Train(Strict):
    """The loop."""

    epochs: Count = Field(10, description="passes over the training images")
    batch_size: Count = Field(32, description="images per optimiser step, over all processes and accumulation steps")
    accumulate: Count = Field(1, description="split each batch into this many backward passes, to save memory")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type")
    channels_last: bool = Field(False, description="memory layout of images and convolutions; often faster")
    compile: bool = Field(False, description="torch.compile the network")
    average: Average = Average()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share e of a label that is replaced: y becomes (1 - e) y + e q"
    )
    smooth_towards: Literal["prevalence", "half"] = Field(
        "prevalence", description="q of label_smoothing: the class's share of positives, or 1/2"
    )
    patience: Count | None = Field(None, description="stop after this many epochs without a better dev macro AP")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of weights, order, augmentation and dropout")
    deterministic: bool = Field(False, description="bitwise repeatable on a GPU as well; slower there")
    save_minutes: NotNegative = Field(10.0, description="save at least this often within an epoch")
    eval_batch_size: Count | None = Field(None, description="images per pass in evaluation; default: batch_size")

    @model_validator(mode="after")
    def _batch_divides(self) -> Train:
        if self.batch_size % self.accumulate:
            near = self.accumulate * math.ceil(self.batch_size / self.accumulate)
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}; "
                f"use {near}, for example"
            )
        return self


def _threshold(value: object) -> object:
    """A rule as text, numbers included; ``thresholds.parse_rule`` reads it."""
    text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or text in ("expected-f1", "searched-f1", "prevalence"):
        return text
    number = text.removeprefix("target-recall=").removeprefix("target-precision=")
    try:
        known = 0 < float(number) < 1
    except ValueError:
        known = False
    if not known:
        raise ValueError(
            "is not expected-f1, searched-f1, prevalence, target-recall=R, target-precision=P or a number, each "
            "number between 0 and 1"
        )
    return text


Threshold = Annotated[str, BeforeValidator(_threshold)]


class Predict(Strict):
    """Defaults of ``cxrlt predict`` for this run."""

    tta: Ref = Field(default=PluginRef(name="none"), description="a plugin of cxrlt.tta")
    calibration: Literal["none", "temperature", "platt", "beta", "isotonic"] = Field(
        "platt", description="map of log-odds, fitted on dev after the posterior link"
    )
    threshold: Threshold = Field(
        "expected-f1",
        description="from which posterior on a finding is called present: expected-f1, searched-f1, prevalence, "
        "target-recall=R, target-precision=P, or a number",
    )


class Recipe(Strict):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "", validate_default=False, description="name of the run; default: the name of the file"
    )
    about: str = Field("", description="what the recipe is for")
    data: Data
    model: Model
    loss: Ref = Field(default=PluginRef(name="bce"), description="a plugin of cxrlt.losses")
    reweight: Reweight = Reweight()
    sampler: Ref = Field(default=PluginRef(name="uniform"), description="a plugin of cxrlt.samplers")
    augment: Augment = Augment()
    mix: Mix = Mix()
    optim: Optim = Optim()
    train: Train = Train()
    predict: Predict = Predict()
