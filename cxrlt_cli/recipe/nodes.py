"""YAML text to a tree whose every value knows the line and column it stands on.

Only what a recipe needs is understood: mappings, lists, text, numbers, true, false and null. The traps of YAML 1.1 are
closed: ``3e-4`` is a number; ``no``, ``on``, ``1:30``, ``010`` and ``2026-01-01`` are text; a key that stands twice, a
tag and a document that would blow up memory are problems. The text may come from a stranger.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import yaml

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*|(?=\.[0-9]))(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None, ".nan": math.nan}
_WORDS |= {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf}
_SPELLINGS = {spelling: value for word, value in _WORDS.items() for spelling in (word, word.upper(), word.title())}

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 32, 20_000

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


class Place(NamedTuple):
    """Where a value was written: a file with line and column (from 1), or a ``--set`` argument (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a recipe. ``plugin`` marks what only the plugin's author or owner can cure."""

    place: Place
    text: str
    cure: str = ""
    plugin: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place: that of its key in a mapping, its own in a list. ``count`` is the size of the subtree."""

    value: bool | int | float | str | list[Node] | dict[str, Node] | None
    place: Place
    count: int = 1

    @property
    def plain(self) -> Plain:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        return [node.plain for node in self.value] if isinstance(self.value, list) else self.value

    def at(self, path: tuple[str | int, ...]) -> Node:
        """The node at ``path``, or the deepest one on the way there."""
        node = self
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                node = node.value[str(part)]
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
            else:
                return node
        return node


def scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar: the core schema of YAML 1.2, but numbers with leading zeros stay text."""
    if text in _SPELLINGS:
        return _SPELLINGS[text]
    if text.lstrip("+-").isdigit():
        return int(text) if _INT.fullmatch(text) else text
    return float(text) if _FLOAT.fullmatch(text) else text


def parse(text: str, source: str) -> tuple[Node, list[Problem]]:
    """A YAML document as a tree, and everything wrong with it. An unreadable document is an empty mapping."""
    top = Place(source, 1, 1)
    if len(text) > MAX_BYTES:
        return Node({}, top), [Problem(top, f"larger than {MAX_BYTES:,} bytes; that is no recipe")]
    builder = _Builder(source)
    try:
        root = builder.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        return Node({}, top), [*builder.problems, _syntax_problem(source, error)]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"the character {chr(error.character)!r} is not allowed in YAML" if error.character else str(error)
        return Node({}, top), [Problem(Place(source, line, 1), found)]
    except _TooMuchError as error:
        return Node({}, top), [error.problem]
    return replace(root, place=top), builder.problems


def parse_value(text: str, place: Place) -> tuple[Node, list[Problem]]:
    """The value of a ``--set``: lists, mappings and quoted text in YAML's flow style, anything else as one scalar."""
    text = text.strip()
    if text[:1] not in {"[", "{", '"', "'"}:
        return Node(scalar(text), place), []
    node, problems = parse(text, "")
    return _placed(node, place), [replace(problem, place=place) for problem in problems]


def _placed(node: Node, place: Place) -> Node:
    if isinstance(node.value, dict):
        return replace(node, value={key: _placed(child, place) for key, child in node.value.items()}, place=place)
    if isinstance(node.value, list):
        return replace(node, value=[_placed(child, place) for child in node.value], place=place)
    return replace(node, place=place)


class _TooMuchError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class _Builder:
    """Builds nodes from PyYAML's events, so that depth and size are bounded while they grow."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}

    def document(self, events: Iterator[yaml.Event]) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self._report(event, "a second document begins here; a recipe is one document")
                break
            if isinstance(event, yaml.NodeEvent):
                root = self.node(event, events, 0)
        return root or Node({}, Place(self.source, 1, 1))

    def node(self, event: Any, events: Iterator[Any], depth: int, place: Place | None = None) -> Node:
        place = place or self._place(event)
        if depth > MAX_DEPTH:
            raise _TooMuchError(Problem(place, f"nested more than {MAX_DEPTH} deep"))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, place)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._report(event, f"the tag '{tag}' is not allowed; a recipe holds plain values only")
        if isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(events, depth, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(events, depth, place)
        else:
            node = Node(event.value if event.style else scalar(event.value), place)
        if node.count > MAX_NODES:
            raise _TooMuchError(Problem(place, f"holds more than {MAX_NODES:,} values; that is no recipe"))
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent, place: Place) -> Node:
        if event.anchor in self.anchors:
            return replace(self.anchors[event.anchor], place=place)
        self._report(event, f"*{event.anchor} refers to nothing above it")
        return Node(None, place)

    def _mapping(self, events: Iterator[yaml.Event], depth: int, place: Place) -> Node:
        found: dict[str, Node] = {}
        count = 1
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            at = self._place(event)
            key = self._key(event, events, depth)
            node = self.node(next(events), events, depth + 1, at)
            count += node.count
            if key in found:
                first = found[key].place
                self._report(event, f"the key '{key}' stands twice; first at line {first.line}, column {first.column}")
            elif key is not None:
                found[key] = node
        return Node(found, place, count)

    def _sequence(self, events: Iterator[yaml.Event], depth: int, place: Place) -> Node:
        found: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self.node(event, events, depth + 1))
        return Node(found, place, 1 + sum(node.count for node in found))

    def _key(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> str | None:
        if isinstance(event, yaml.ScalarEvent) and event.tag is None:
            return event.value
        self.node(event, events, depth + 1)  # reads to its end
        self._report(event, "a key must be a plain word")
        return None

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return Place(self.source, mark.line + 1, mark.column + 1) if mark else Place(self.source)

    def _report(self, event: yaml.Event, text: str) -> None:
        self.problems.append(Problem(self._place(event), text))


def _syntax_problem(source: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    text = f"not valid YAML: {error.problem or error}"
    if "'\\t'" in text:
        text = "not valid YAML: a tab stands where YAML wants spaces"
    elif error.context and error.problem:
        text += f" ({error.context})"
    return Problem(Place(source, mark.line + 1, mark.column + 1) if mark else Place(source, 1, 1), text)
