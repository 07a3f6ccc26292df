from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_cli.recipe.nodes import MAX_DEPTH, Place, parse, parse_value, scalar

HERE = Place("--set x")


def texts(source: str) -> list[str]:
    return [str(problem.place) + " " + problem.text for problem in parse(source, "r")[1]]


# the core schema of YAML 1.2.2, section 10.3.2
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("Null", None),
        ("NULL", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("True", True),
        ("TRUE", True),
        ("false", False),
        ("0", 0),
        ("-19", -19),
        ("+7", 7),
        ("0.", 0.0),
        ("-0.0", -0.0),
        (".5", 0.5),
        ("+12e03", 12000.0),
        ("-2E+05", -200000.0),
        ("3e-4", 3e-4),
        ("1e-3", 1e-3),
        ("1e5", 1e5),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("+.INF", math.inf),
    ],
)
def test_core_schema(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan() -> None:
    assert math.isnan(float(str(scalar(".nan"))))


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "No",
        "NO",
        "off",
        "on",
        "yes",
        "y",
        "n",
        "1:30",
        "1:30:00",
        "010",
        "0o10",
        "0x1F",
        "1_000",
        "2026-01-01",
        "1.90E+38x",
        "nan",
        "inf",
        "tRUE",
        "nULL",
        "1e",
        "1.2.3",
        "+",
        ".",
        "-",
        "e5",
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert scalar(text) == text


@pytest.mark.parametrize("text", ["no", "on", "010", "1:30", "2026-01-01", "1_000", "0x1F", "off"])
def test_yaml_1_1_would_have_changed_them(text: str) -> None:
    assert yaml.safe_load(text) != text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_of_python_is_read_back(value: float) -> None:
    assert scalar(repr(value)) == value


@given(st.integers(-(10**30), 10**30))
def test_every_whole_number_is_read_back(value: int) -> None:
    assert scalar(str(value)) == value


def test_a_number_of_many_digits_is_text_and_quick() -> None:
    assert isinstance(scalar("1" * 100_000), str)


def test_lines_and_columns() -> None:
    root, problems = parse("a: 1\nb:\n  c:\n    - x\n    - {d: 2}\n", "r.yaml")
    assert not problems
    assert str(root.at(("a",)).place) == "r.yaml:1:1"
    assert str(root.at(("b", "c")).place) == "r.yaml:3:3"
    assert str(root.at(("b", "c", 1)).place) == "r.yaml:5:7"
    assert str(root.at(("b", "c", 1, "d")).place) == "r.yaml:5:8"
    assert root.plain == {"a": 1, "b": {"c": ["x", {"d": 2}]}}


def test_the_deepest_known_place_stands_for_a_missing_one() -> None:
    root, _ = parse("a:\n  b: 1\n", "r")
    assert root.at(("a", "missing", "deeper")).place.line == 1


def test_quotes_keep_text_text() -> None:
    root, _ = parse("a: '3'\nb: \"true\"\nc: |\n  4\n", "r")
    assert root.plain == {"a": "3", "b": "true", "c": "4\n"}


def test_keys_are_words() -> None:
    root, _ = parse("no: 1\n010: 2\ntrue: 3\n", "r")
    assert list(root.plain) == ["no", "010", "true"]  # type: ignore[arg-type]  # a mapping


def test_aliases_are_followed() -> None:
    root, problems = parse("a: &x {lr: 1}\nb: *x\n", "r")
    assert not problems
    assert root.plain == {"a": {"lr": 1}, "b": {"lr": 1}}
    assert root.at(("b",)).place.line == 2


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "r:3:1 the key 'a' stands twice; first at line 1, column 1"),
        ("x: {a: 1, a: 2}", "r:1:11 the key 'a' stands twice; first at line 1, column 5"),
        ("a: !!python/object:os.system x", "r:1:4 the tag '!!python/object:os.system' is not allowed"),
        ("a: !!float 3", "r:1:4 the tag '!!float' is not allowed"),
        ("a: !env HOME", "r:1:4 the tag '!env' is not allowed"),
        ("a: *b", "r:1:4 *b refers to nothing above it"),
        ("a: &a [*a]", "r:1:8 *a refers to nothing above it"),
        ("? [a, b]\n: 1", "r:1:3 a key must be a plain word"),
        ("a: 1\n---\nb: 2\n", "r:2:1 a second document begins here"),
        ("a:\n\tb: 1", "r:2:1 not valid YAML: a tab stands where YAML wants spaces"),
        ("a: [1, 2\nb: 3", "not valid YAML"),
        ("a: 'open", "not valid YAML"),
        ("a: \x07", "r:1:1 the character '\\x07' is not allowed"),
        ("[" * (MAX_DEPTH + 2), "nested more than 32 deep"),
        ("a" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_problems_have_a_place(source: str, problem: str) -> None:
    assert any(problem in text for text in texts(source)), texts(source)


def test_all_problems_of_a_file_are_found() -> None:
    assert len(texts("a: 1\na: 2\nb: !t 3\nc: *d\n")) == 3


def test_billion_laughs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert any("holds more than 20,000 values" in text for text in texts("\n".join(lines)))


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    assert any("nested more than" in text for text in texts("[" * 100_000))


@pytest.mark.parametrize("source", ["", "# nothing\n", "---\n"])
def test_an_empty_document_is_an_empty_mapping_or_null(source: str) -> None:
    root, problems = parse(source, "r")
    assert not problems
    assert not root.plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        (" 3 ", 3),
        ("no", "no"),
        ("[PA, AP]", ["PA", "AP"]),
        ("{name: ldam, scale: 30}", {"name": "ldam", "scale": 30}),
        ("'3'", "3"),
        ('"a b"', "a b"),
        ("", None),
        ("null", None),
        ("C:\\data: x", "C:\\data: x"),
        ("a # b", "a # b"),
        ("- 3", "- 3"),
    ],
)
def test_values_of_set(text: str, value: object) -> None:
    node, problems = parse_value(text, HERE)
    assert not problems
    assert node.plain == value


def test_places_of_a_set_value_are_the_argument() -> None:
    node, _ = parse_value("{a: [1, {b: 2}]}", HERE)
    assert node.at(("a", 1, "b")).place == HERE


def test_broken_value_of_set() -> None:
    _, problems = parse_value("[1, 2", HERE)
    assert problems[0].place == HERE
