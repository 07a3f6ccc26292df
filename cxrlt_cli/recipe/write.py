"""A recipe back to YAML, and the JSON schema editors use."""

from __future__ import annotations

from typing import Any

import yaml

from cxrlt_cli import registry
from cxrlt_cli.recipe.nodes import scalar
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sections import PLUGINS


class _Dumper(yaml.SafeDumper):
    """Quotes every text that our own reader would take for something else (PyYAML follows YAML 1.1)."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(value), str) else "'"
    if not value.isprintable():  # line breaks of Unicode would be folded into spaces
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default written out; ``load_recipe`` reads the same recipe back."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def json_schema() -> dict[str, Any]:
    """A JSON schema of recipe files, with the names of the installed plugins; imports no plugin."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "cxrlt recipe"
    schema["properties"]["extends"] = {"type": "string", "description": "path or shipped name of a recipe to build on"}
    for definition in [schema, *schema["$defs"].values()]:
        definition.pop("required", None)  # what is missing here may come from the recipe that is extended
    schema["anyOf"] = [{"required": ["extends"]}, {"required": ["data", "model"]}]
    for path, kind in PLUGINS.items():
        _offer_names(schema, path, kind)
    del schema["$defs"]["PluginRef"]
    return schema


def _offer_names(schema: dict[str, Any], path: str, kind: str) -> None:
    *sections, key = path.split(".")
    holder = schema
    for section in sections:
        reference = holder["properties"][section]
        holder = schema["$defs"][reference["$ref"].rpartition("/")[2]]
    names: list[str] = sorted({plugin.name for plugin in registry.available(kind)})
    name = {"anyOf": [{"enum": names}, {"type": "string", "pattern": "^[^:]+:[^:]+$"}]}
    long = {"type": "object", "properties": {"name": name}, "required": ["name"]}
    described = {k: v for k, v in holder["properties"][key].items() if k in {"description", "default"}}
    holder["properties"][key] = {"anyOf": [name, long], **described}
