"""A module imports only from rows below its own (DESIGN 3); of the host, plugins import the contracts only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

#: From top to bottom. Modules of one row do not import each other, except in the first: it is one front.
ROWS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "cli console stubs failure source_command __main__",
        "commands",
        "report scaffold",
        "engine testing",
        "combine",
        "decisions gap",
        "data model optim posterior reweight bootstrap calibration thresholds submission",
        "metrics",
        "recipe",
        "registry artifacts",
        "options logistic",
        "contracts events errors wording",
    )
)
FRONT = ROWS[0]
ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "cxrlt_cli"


def unit_of(path: Path) -> str:
    """The module or package directly below ``cxrlt_cli`` that a file belongs to; empty for ``__init__`` itself."""
    first = path.relative_to(HOST).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(tree: ast.AST, package: str = "") -> Iterator[tuple[int, str]]:
    """Every dotted name imported anywhere in a file of ``package``: in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def imports_of(path: Path) -> list[tuple[int, str]]:
    root = HOST.parent if path.is_relative_to(HOST) else ROOT / "plugins"
    return list(imports(ast.parse(path.read_text()), ".".join(path.relative_to(root).parent.parts)))


def host_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, unit) of every import from ``cxrlt_cli``; the version in ``cxrlt_cli/__init__`` is free for all."""
    for line, name in imports_of(path):
        head, _, rest = name.partition(".")
        unit = rest.partition(".")[0]
        if head == "cxrlt_cli" and unit and ((HOST / unit).is_dir() or (HOST / f"{unit}.py").is_file()):
            yield line, unit


def row_of(unit: str) -> int:
    return next(number for number, row in enumerate(ROWS) if unit in row)


HOST_FILES = sorted(HOST.rglob("*.py"))
PLUGIN_FILES = sorted((ROOT / "plugins").rglob("*.py"))


def test_the_rows_are_those_told_to_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    told = text.split("## The layer rule")[1].split("```")[1].removeprefix("text\n").splitlines()
    assert [set(re.split(r" {3,}", line)[0].split()) for line in told] == [row - {"__main__"} for row in ROWS]


def test_every_module_has_a_row() -> None:
    units = {unit_of(path) for path in HOST_FILES} - {""}
    assert units <= frozenset().union(*ROWS)


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: str(path.relative_to(HOST)))
def test_imports_go_down(path: Path) -> None:
    own = unit_of(path)
    for line, unit in host_imports(path):
        if unit == own or {unit, own} <= FRONT:
            continue
        assert own, f"line {line}: cxrlt_cli/__init__.py imports nothing"
        assert row_of(unit) > row_of(own), f"line {line}: {own} imports {unit}, which is not below it"


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: str(path.relative_to(HOST)))
def test_the_host_never_names_a_plugin_package(path: Path) -> None:
    assert not [line for line, name in imports_of(path) if name.startswith("cxrlt_plugins")]
    texts = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert not [node.lineno for node in texts if "cxrlt_plugins" in str(node.value)]


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_import_the_contracts_only(path: Path) -> None:
    allowed = {"contracts", "testing"} if "tests" in path.parts else {"contracts"}
    assert not [(line, unit) for line, unit in host_imports(path) if unit not in allowed]


def test_rich_is_known_to_the_console_only() -> None:
    users = {
        str(path.relative_to(HOST))
        for path in HOST_FILES
        for _, name in imports_of(path)
        if name.split(".")[0] == "rich"
    }
    assert users == {"console.py"}


def test_the_walker_sees_hidden_imports() -> None:
    source = "if TYPE_CHECKING:\n    import a.b\ndef f():\n    from c import d\nclass E:\n    import g as h\n"
    assert [name for _, name in imports(ast.parse(source))] == ["a.b", "c.d", "g"]
    relative = "from . import x\nfrom .y import z\nfrom ..v import w\n"
    assert [name for _, name in imports(ast.parse(relative), "p.q")] == ["p.q.x", "p.q.y.z", "p.v.w"]
