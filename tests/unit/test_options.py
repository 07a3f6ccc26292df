from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from cxrlt_cli.options import factory_faults, make_model, problems, read_options


def rich(
    stats: NeverImported,  # type: ignore[name-defined]  # noqa: F821  # as a name imported for type checkers only
    *,
    share: float,
    count: int = 3,
    flag: bool = False,
    mode: Literal["pad", "squash"] = "pad",
    tag: str | None = None,
    names: list[str] | None = None,
    range_: tuple[float, ...] = (0.0, 1.0),
    rows: Sequence[int] = (),
    either: bool | str = True,
) -> None:
    """Does much.

    Args:
        stats: given by the host.
        share: of the whole,
            in [0, 1].
        count: how many: at least one.

    Returns:
        nothing: at all.
    """


def check(given: dict[str, Any], factory: Any = rich) -> list[str]:
    return [text for _, text in problems("loss 'x'", make_model("x", factory), given)]


def test_a_good_factory_has_no_faults() -> None:
    assert factory_faults("losses", rich) == []


def test_options_keep_order_types_and_defaults() -> None:
    options = {option.name: option for option in read_options(rich)}
    assert list(options)[:3] == ["share", "count", "flag"]
    assert options["share"].required
    assert options["count"].default == 3
    assert options["mode"].type_name == "'pad' | 'squash'"
    assert options["tag"].type_name == "str | None"
    assert options["names"].type_name == "list of str | None"
    assert options["either"].type_name == "bool | str"


def test_help_is_read_from_the_docstring() -> None:
    helps = {option.name: option.help for option in read_options(rich)}
    assert helps["share"] == "of the whole, in [0, 1]."
    assert helps["count"] == "how many: at least one."
    assert helps["flag"] == ""


def test_defaults_are_kept() -> None:
    values = dict(make_model("x", rich)(share=0.5))
    assert values["range_"] == (0.0, 1.0)
    assert values["mode"] == "pad"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "the loss 'x' needs the option 'share'"),
        ({"share": "0.5"}, "option 'share' of the loss 'x': expected a number, got the text '0.5'"),
        ({"share": True}, "option 'share' of the loss 'x': expected a number, got true"),
        ({"share": float("nan")}, "option 'share' of the loss 'x': must be a finite number"),
        ({"share": 1, "count": 2.0}, "option 'count' of the loss 'x': expected a whole number, got the number 2.0"),
        ({"share": 1, "count": True}, "option 'count' of the loss 'x': expected a whole number, got true"),
        ({"share": 1, "flag": 1}, "option 'flag' of the loss 'x': expected true or false, got the number 1"),
        (
            {"share": 1, "mode": "pads"},
            "option 'mode' of the loss 'x': expected 'pad' or 'squash', got the text 'pads'",
        ),
        ({"share": 1, "tag": 3}, "option 'tag' of the loss 'x': expected text, got the number 3"),
        ({"share": 1, "names": ["a", 3]}, "option 'names' of the loss 'x', item 2: expected text, got the number 3"),
        ({"share": 1, "names": "a"}, "option 'names' of the loss 'x': expected a list, got the text 'a'"),
        (
            {"share": 1, "either": 3},
            "option 'either' of the loss 'x': expected true or false or text, got the number 3",
        ),
        ({"share": 1, "shar": 3}, "unknown option 'shar' of the loss 'x'. Did you mean 'share'?"),
    ],
)
def test_wrong_options_are_told_in_plain_words(given: dict[str, Any], sentence: str) -> None:
    assert check(given) == [sentence]


def test_lists_serve_as_tuples_and_whole_numbers_as_floats() -> None:
    model = make_model("x", rich)(share=1, range_=[1, 2], rows=[3])
    assert dict(model)["range_"] == (1.0, 2.0)
    assert list(dict(model)["rows"]) == [3]


def test_unknown_option_lists_the_others() -> None:
    def factory(stats: Any, *, scale: float = 1.0) -> None: ...

    assert check({"zzz": 1}, factory) == ["unknown option 'zzz' of the loss 'x'. Options: scale."]


def test_factory_without_options_says_so() -> None:
    def factory(stats: Any) -> None: ...

    assert check({"a": 1}, factory) == ["unknown option 'a' of the loss 'x'. It has no options."]


def _faults(source: str, kind: str = "losses") -> list[str]:
    scope: dict[str, Any] = {"__name__": __name__}
    exec(source, scope)
    return factory_faults(kind, scope["build"])


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def build(): ...", "the host calls it as build(stats, *, ...), but its positional parameters are ()"),
        ("def build(a): ...", "the host calls it as build(stats, *, ...), but its positional parameters are (a)"),
        ("def build(stats, m=1): ...", "the parameters m must be keyword-only: build(stats, *, ...)"),
        ("def build(stats, *, m=1): ...", "the option 'm' has no type annotation"),
        ("def build(stats, *, m: Nope = 1): ...", "the annotation of the option 'm' (Nope) cannot be evaluated"),
        ("def build(stats, *, m: dict = None): ...", "the option 'm' is a dict; options are bool, int,"),
        ("def build(stats, *, m: int = 2.5): ...", "the default of the option 'm' does not fit its type"),
        ("def build(stats, *, m: float = 'x'): ...", "expected a number, got the text 'x'"),
        ("def build(stats, *, name: str = ''): ...", "the option name 'name' is reserved"),
        ("def build(stats, *, copy: bool = True): ...", "the option name 'copy' is reserved"),
        ("def build(stats, *args): ...", "'*args' is not allowed"),
        ("def build(stats, **options): ...", "'**options' is not allowed"),
    ],
)
def test_faults_of_a_factory(source: str, fault: str) -> None:
    (found,) = _faults(source)
    assert fault in found


def test_parameters_may_be_marked_unused() -> None:
    assert _faults("def build(_stats): ...") == []


def test_wrong_order_is_found() -> None:
    assert _faults("def build(stats, width): ...", "heads")
    assert not _faults("def build(width, stats): ...", "heads")


def test_classes_and_partials_are_factories() -> None:
    class Loss:
        def __init__(self, stats: object, *, scale: float = 3.0) -> None: ...

    assert factory_faults("losses", Loss) == []
    assert [option.name for option in read_options(Loss)] == ["scale"]
    fixed = functools.partial(rich, share=0.5)
    assert {option.name: option.default for option in read_options(fixed)}["share"] == 0.5


def test_a_builtin_without_signature_is_refused() -> None:
    assert factory_faults("losses", dict.fromkeys.__self__) == ["its signature cannot be read"]
