"""Plain words: for what is wrong with a value, for numbers of things, for figures. Standard library only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

#: What each type error of pydantic asks for.
_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "none_required": "null",
}

_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was probably meant to be, whatever its case; None when nothing is near."""
    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), list(names), n=1, cutoff=0.6)
    return names[close[0]] if close else None


def count(number: int, thing: str, things: str = "") -> str:
    """A number of things: ``"1 class"``, ``"1,200 images"``; ``things`` where there is more to it than an s."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


#: How figures stand in a table, and how differences do; what rounds to nothing has no sign.
UNSIGNED, SIGNED = ".4f", "+z.4f"


def figure(value: float | None, form: str = UNSIGNED) -> str:
    """A figure for a table, "-" where there is none."""
    return "-" if value is None or math.isnan(value) else format(float(value), form)


def between(low: float | None, high: float | None, form: str = UNSIGNED) -> str:
    """An interval for a table: ``"0.1000 to 0.2000"``, "-" where there is none."""
    found = (figure(low, form), figure(high, form))
    return "-" if "-" in found else " to ".join(found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``, or an empty string; made to be appended to a sentence."""
    near = nearest(word, known)
    return f" Did you mean '{near}'?" if near else ""


def describe(value: object) -> str:
    """A value as the user sees it in a recipe: ``the text 'abc'``, ``the number 3``, ``a list``."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {_shortened(value)!r}"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def explain(errors: Iterable[Mapping[str, Any]]) -> str:
    """What pydantic's errors about *one* value say, as one phrase without a subject.

    Several errors about one value are the branches of a union: any of them would have done.
    """
    found = list(errors)
    wanted = [text for text in (_expectation(error) for error in found) if text]
    if not wanted:
        return "; ".join(dict.fromkeys(_sentence(error) for error in found))
    return f"expected {' or '.join(dict.fromkeys(wanted))}, got {describe(found[0]['input'])}"


def _expectation(error: Mapping[str, Any]) -> str:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    return _EXPECTED.get(error["type"], "")


def _sentence(error: Mapping[str, Any]) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind in _LIMITS:
        word, key = _LIMITS[kind]
        return f"must be {word} {context[key]:g}, got {value!r}"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "string_too_short":
        return "must not be empty"
    if kind in {"too_short", "too_long"}:
        word, key = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"needs {word} {context[key]} items, got {context['actual_length']}"
    if kind == "string_pattern_mismatch":
        return f"the text {_shortened(value)!r} does not fit the pattern {context['pattern']}"
    return str(context["error"]) if kind == "value_error" else str(error["msg"])


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
