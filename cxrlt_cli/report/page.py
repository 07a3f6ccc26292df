"""Pages from templates. Everything a page needs is in the page."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from cxrlt_cli.bootstrap import p_text
from cxrlt_cli.report.text import shown

if TYPE_CHECKING:
    from jinja2 import Environment


def page(template: str, **values: Any) -> str:
    """A page from ``templates/<template>``. Text is escaped; drawings are passed as ``markupsafe.Markup``."""
    return _environment().get_template(template).render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("cxrlt_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_final,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f}\u00a0%"
    environment.filters["figure"] = figure
    environment.filters["p"] = p_text
    environment.filters["signed"] = lambda value, digits=3: figure(value, digits, "+")
    script = files("cxrlt_cli.report").joinpath("templates/sort.js").read_text(encoding="utf-8")
    # the browser runs no script but the one with this digest, whatever else a page may contain
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(sort_script=Markup(script), sort_digest=digest)
    return environment


def _final(value: Any) -> Any:
    """What a page shows of a value; markup is our own."""
    return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def spread(counts: Iterable[int]) -> str:
    """The counts of several runs: one number where they agree, else the least and the most of them."""
    ordered = sorted(counts)
    return f"{ordered[0]:,}" if ordered[0] == ordered[-1] else f"{ordered[0]:,} to {ordered[-1]:,}"


def figure(value: float, digits: int = 3, sign: str = "") -> str:
    """A figure with three digits after the point; a dash where it is undefined, and no sign where it is 0."""
    if math.isnan(value):
        return "\u2013"
    text = f"{value:{sign}.{digits}f}"
    return (text if text.strip("+-0.") else f"{0:.{digits}f}").replace("-", "\u2212")
