"""Text that comes from data, as it may stand in a page."""

from __future__ import annotations

import html
import re

#: Control characters, halves of characters, and marks that turn the direction of all that follows them: with one in a
#: name, the figure beside it would read backwards.
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """The text, with what must not work in a page made visible.

    >>> shown("left\\u202eright")
    'left\ufffdright'
    """
    return _REFUSED.sub("\ufffd", text)


def escape(text: str) -> str:
    """``shown`` and without markup, for drawings; templates escape by themselves."""
    return html.escape(shown(text))


def apart(text: str) -> str:
    """``escape`` for a name within a line of a drawing: its direction of writing is its own."""
    return f'<tspan class="name">{escape(text)}</tspan>'
