"""``cxrlt plugins new``: a whole plugin package, which installs and passes the conformance kit as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from cxrlt_cli import registry
from cxrlt_cli.artifacts import write_text
from cxrlt_cli.contracts import GROUPS
from cxrlt_cli.errors import DataError, UsageError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.registry import SINGULAR
from cxrlt_cli.wording import did_you_mean

#: The kinds as the command takes them.
KINDS: Mapping[str, str] = {
    "loss": "losses",
    "backbone": "backbones",
    "head": "heads",
    "sampler": "samplers",
    "tta": "tta",
    "dataset": "datasets",
}

_NEEDS = {"losses": ["torch>=2.6"], "heads": ["torch>=2.6"], "backbones": ["torch>=2.6", "safetensors>=0.5"]}
_USE = {
    "losses": "In a recipe: `loss: {name: $name, scale: 2}`, or `cxrlt train RECIPE --set loss=$name`.",
    "backbones": "In a recipe: `model: {backbone: {name: $name, width: 64}}`.",
    "heads": "In a recipe: `model: {head: {name: $name, dropout: 0.2}}`.",
    "samplers": "In a recipe: `sampler: {name: $name, times: 3}`.",
    "tta": "Use it with `cxrlt predict RUN --split dev --tta $name`.",
    "datasets": "Use it with `cxrlt prepare $name OUT --images DIR --labels FILE`.",
}


def run(kind: str, name: str, *, out: Path | None = None, emit: Emit = silent) -> Result:
    """Write the package.

    Args:
        kind: "loss", "backbone", "head", "sampler", "tta" or "dataset"; the plural will do.
        name: name of the plugin: small letters, digits and single hyphens, a letter first.
        out: directory to make; default ``cxrlt-NAME``.
        emit: told when the name is taken by another package.

    Raises:
        UsageError: there is no such kind, or the name cannot be used.
        DataError: the directory is there already and not empty.
    """
    group = _kind(kind)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        cure = "Use small letters, digits and single hyphens, a letter first, such as soft-margin."
        raise UsageError(f"'{name}' cannot be the name of a plugin", cure=cure)
    _warn_if_taken(group, name, emit)
    folder = out or Path(f"cxrlt-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("is there already", where=str(folder), cure="Choose another directory with --out.")
    written = _write(folder, group, name)
    steps = f"Next: pip install -e {folder}, then cxrlt plugins check cxrlt-{name}"
    data = {"kind": group, "name": name, "directory": str(folder), "files": [str(path) for path in written]}
    return Result(data, (Table(("wrote",), tuple((str(path),) for path in written)), steps))


def _kind(kind: str) -> str:
    if kind in GROUPS:
        return kind
    if kind not in KINDS:
        raise UsageError(
            f"there is no kind of plugin '{kind}'.{did_you_mean(kind, KINDS)}", cure=f"Kinds: {', '.join(KINDS)}."
        )
    return KINDS[kind]


def _warn_if_taken(group: str, name: str, emit: Emit) -> None:
    owners = [plugin for plugin in registry.available(group) if plugin.name == name]
    for plugin in owners:
        text = f"{plugin.distribution} has a {SINGULAR[group]} '{name}' already: recipes will have to name the package"
        emit(Notice(text, "warning"))


def _write(folder: Path, group: str, name: str) -> list[Path]:
    module = f"cxrlt_{name.replace('-', '_')}"
    words = {
        "name": name,
        "kind": group,
        "group": GROUPS[group],
        "module": module,
        "distribution": f"cxrlt-{name}",
        "title": "".join(part.capitalize() for part in name.split("-")),
        "about": f"The {SINGULAR[group]} {name}",
        "dependencies": ", ".join(f'"{need}"' for need in ("cxrlt", "numpy>=1.26", *_NEEDS.get(group, []))),
    }
    words["use"] = Template(_USE[group]).substitute(words)
    targets = {
        "pyproject.toml.txt": "pyproject.toml",
        f"{group}.py.txt": f"{module}.py",
        "test.py.txt": f"tests/test_{name.replace('-', '_')}.py",
        "README.md.txt": "README.md",
    }
    for source, target in targets.items():
        template = files("cxrlt_cli.scaffold").joinpath(source).read_text(encoding="utf-8")
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / target, Template(template).substitute(words))
    return [folder / target for target in targets.values()]
