"""The keys a recipe may hold, read from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from cxrlt_cli.recipe.schema import PluginRef, Recipe
from cxrlt_cli.wording import nearest

#: Where a recipe names plugins, and of which kind.
PLUGINS: Mapping[str, str] = {
    "model.backbone": "backbones",
    "model.head": "heads",
    "loss": "losses",
    "sampler": "samplers",
    "predict.tta": "tta",
}


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model a field holds, looking through ``X | None``."""
    options = [annotation, *get_args(annotation)]
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        yield prefix + name, field.description or _summary(inner)
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")


def _summary(model: type[BaseModel] | None) -> str:
    return (model.__doc__ or "").partition("\n")[0].rstrip(".") if model else ""


#: Every key by its dotted path, with its description.
SECTIONS: Mapping[str, str] = dict(_walk(Recipe))


def keys_of(section: str) -> list[str]:
    """The keys of a section (``""`` is the recipe itself)."""
    prefix = f"{section}." if section else ""
    found = [path.removeprefix(prefix) for path in SECTIONS if path.startswith(prefix)]
    return [key for key in found if "." not in key] + ([] if section else ["extends"])


def unknown_key(dotted: str) -> str:
    """The sentence for a key that does not exist, with the best guess at what was meant."""
    section, _, key = dotted.rpartition(".")
    text = f"unknown key '{dotted}'."
    if dotted in SECTIONS:
        return f"{text} Write it nested: '{key}' under '{section}'."
    if key == "<<":
        return f"{text} Merge keys are not known here; use 'extends', or repeat the values."
    guess = _elsewhere(section, key) or nearest(key, keys_of(section)) or _elsewhere(section, key, near=True)
    return f"{text} Did you mean '{guess}'?" if guess else f"{text} Keys here: {', '.join(keys_of(section))}."


def _elsewhere(section: str, key: str, near: bool = False) -> str | None:
    """A key of that (or nearly that) name in another section; the closest section first."""
    leaves = {path.rpartition(".")[2] for path in SECTIONS}
    wanted = nearest(key, leaves) if near else key
    paths = [path for path in SECTIONS if path.rpartition(".")[2] == wanted and "." in path]
    return min(paths, key=lambda path: (not path.startswith(f"{section}."), path.count(".")), default=None)


def plugin_reference_paths() -> set[str]:
    """The dotted paths of every field of the schema that holds a plugin."""
    return {path for path, model in _models(Recipe) if model is PluginRef}


def _models(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            yield prefix + name, inner
            yield from _models(inner, f"{prefix}{name}.")
