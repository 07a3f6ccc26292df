"""A document back to YAML, and the JSON schemas editors use."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from cxrlt_cli import registry
from cxrlt_cli.errors import PluginError
from cxrlt_cli.recipe.nodes import scalar
from cxrlt_cli.recipe.sections import TRAIN, Form


class _Dumper(yaml.SafeDumper):
    """Quotes every text that our own reader would take for something else (PyYAML follows YAML 1.1)."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(value), str) else "'"
    if not value.isprintable():  # line breaks of Unicode would be folded into spaces
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump_recipe(recipe: BaseModel) -> str:
    """The whole document as YAML, every default written out; loading it gives the same document back."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def json_schema(form: Form[Any] = TRAIN, *, options: bool = False) -> dict[str, Any]:
    """A JSON schema of files of one kind, with the names of the installed plugins.

    Args:
        form: the kind of document.
        options: also the options of every plugin, with types and defaults; that imports the plugins. One that cannot
            be imported keeps its name, without options.
    """
    schema: dict[str, Any] = form.model.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"cxrlt: {form.noun}"
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "path or shipped name of a document to build on",
    }
    required = [key for key in schema.get("required", ()) if key not in form.marks]
    for definition in [schema, *schema["$defs"].values()]:
        definition.pop("required", None)  # what is missing here may come from the document that is extended
    own = [{"required": [*required, mark]} for mark in form.marks] or [{"required": required}]
    schema["anyOf"] = [{"required": ["extends"]}, *own]
    for path, kind in form.plugins.items():
        _offer_names(schema, path, kind, options)
    schema["$defs"].pop("PluginRef", None)
    return schema


def _offer_names(schema: dict[str, Any], path: str, kind: str, options: bool) -> None:
    *sections, key = path.split(".")
    holder = schema
    for section in sections:
        reference = holder["properties"][section]
        holder = schema["$defs"][reference["$ref"].rpartition("/")[2]]
    names: list[str] = sorted({plugin.name for plugin in registry.available(kind)})
    foreign = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
    name = {"anyOf": [{"enum": names}, foreign]}
    long = [*(_with_options(kind, each) for each in names), _plain(foreign)] if options else [_plain(name)]
    field = holder["properties"][key]
    described = {k: v for k, v in field.items() if k in {"description", "default"}}
    optional = [{"type": "null"}] if {"type": "null"} in field.get("anyOf", ()) else []
    holder["properties"][key] = {"anyOf": [name, *long, *optional], **described}


def _plain(name: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"name": name}, "required": ["name"]}


def _with_options(kind: str, name: str) -> dict[str, Any]:
    """The long form of one plugin: its name and its own options."""
    found = _plain({"const": name})
    try:
        own = registry.options_model(kind, name).model_json_schema()
        helps = {option.name: option.help for option in registry.options_of(kind, name)}
    except PluginError:
        return found  # missing, broken or ambiguous: whoever names it is told so
    for option, schema in own.get("properties", {}).items():
        found["properties"][option] = {**schema, **({"description": helps[option]} if helps[option] else {})}
    return {**found, "required": ["name", *own.get("required", ())], "additionalProperties": False}
