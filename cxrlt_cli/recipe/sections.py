"""The keys each kind of document may hold, read from its schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel

from cxrlt_cli.recipe.retrain import Retrain
from cxrlt_cli.recipe.schema import PluginRef, Recipe
from cxrlt_cli.recipe.sweep import Sweep
from cxrlt_cli.wording import nearest

M = TypeVar("M", bound=BaseModel)

#: The kind of plugin a key names, wherever the key stands.
_KINDS = {"backbone": "backbones", "head": "heads", "loss": "losses", "sampler": "samplers", "tta": "tta"}


@dataclass(frozen=True)
class Form(Generic[M]):
    """One kind of document.

    Attributes:
        kind: what ``recipe list`` calls it.
        model: its schema.
        noun: what it is called in a sentence.
        usage: the command it is for.
        marks: top-level keys that only documents of this kind have.
    """

    kind: str
    model: type[M]
    noun: str
    usage: str
    marks: tuple[str, ...] = ()

    @cached_property
    def sections(self) -> Mapping[str, str]:
        """Every key by its dotted path, with its description."""
        return dict(_walk(self.model))

    @cached_property
    def plugins(self) -> Mapping[str, str]:
        """Where plugins are named, and of which kind."""
        paths = (path for path, model in _models(self.model) if model is PluginRef)
        return {path: _KINDS[path.rpartition(".")[2]] for path in paths}

    def keys_of(self, section: str) -> list[str]:
        """The keys of a section (``""`` is the document itself)."""
        prefix = f"{section}." if section else ""
        found = [path.removeprefix(prefix) for path in self.sections if path.startswith(prefix)]
        return [key for key in found if "." not in key] + ([] if section else ["extends"])

    def unknown_key(self, dotted: str) -> str:
        """The sentence for a key that does not exist, with the best guess at what was meant."""
        section, _, key = dotted.rpartition(".")
        text = f"unknown key '{dotted}'."
        if dotted in self.sections:
            return f"{text} Write it nested: '{key}' under '{section}'."
        if key == "<<":
            return f"{text} Merge keys are not known here; use 'extends', or repeat the values."
        known = self.keys_of(section)
        guess = self._elsewhere(section, key) or nearest(key, known) or self._elsewhere(section, key, near=True)
        return f"{text} Did you mean '{guess}'?" if guess else f"{text} Keys here: {', '.join(known)}."

    def _elsewhere(self, section: str, key: str, near: bool = False) -> str | None:
        """A key of that (or nearly that) name in another section; the closest section first."""
        leaves = {path.rpartition(".")[2] for path in self.sections}
        wanted = nearest(key, leaves) if near else key
        paths = [path for path in self.sections if path.rpartition(".")[2] == wanted and "." in path]
        return min(paths, key=lambda path: (not path.startswith(f"{section}."), path.count(".")), default=None)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model a field holds, looking through ``X | None``, ``list[X]`` and ``Annotated[X, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_of(inner))), None)


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        yield prefix + name, field.description or _summary(inner)
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")


def _summary(model: type[BaseModel] | None) -> str:
    return (model.__doc__ or "").partition("\n")[0].rstrip(".") if model else ""


def _models(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            yield prefix + name, inner
            yield from _models(inner, f"{prefix}{name}.")


TRAIN = Form("train", Recipe, "a recipe to train", "cxrlt train RECIPE")
HEAD = Form("head", Retrain, "a head recipe", "cxrlt retrain-head RUN RECIPE", ("method",))
SWEEP = Form("sweep", Sweep, "a sweep", "cxrlt sweep TABLE", ("rows", "axes"))
FORMS: tuple[Form[Any], ...] = (TRAIN, HEAD, SWEEP)

#: Of recipes to train.
SECTIONS, PLUGINS = TRAIN.sections, TRAIN.plugins
keys_of, unknown_key = TRAIN.keys_of, TRAIN.unknown_key
