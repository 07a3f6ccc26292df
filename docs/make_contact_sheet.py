"""Draw the contact sheets of ``docs/phantoms.md``: every class beside a Normal of the same body.

    python docs/make_contact_sheet.py [--size 104] [--out docs/images]

A row is a class. Its first picture is a body without findings, the second the same body with the finding; three other
bodies follow, the finding growing more severe to the right. Drawings, not clinical data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_plugins.datasets.phantom_art.render import Case, render
from cxrlt_plugins.datasets.phantom_art.vocabulary import FINDINGS

if TYPE_CHECKING:
    from PIL import Image

SEVERITIES = (0.6, 0.15, 0.5, 1.0)
BAND, GAP = 14, 4


def example(name: str, view: str, column: int, severity: float | None) -> Case:
    """The case shown in one cell; column 0 and 1 share a body."""
    body = 40 * FINDINGS.index(name) + max(column, 1)
    sex, age = "FM"[body % 2], 38.0 + (body * 17) % 50
    seen = "AP" if view == "frontal" and column == 3 else {"frontal": "PA"}.get(view, view)
    findings = {} if severity is None else {name: severity}
    return Case(7, body, body, 0, seen, sex, age, findings)


def contact_sheet(names: tuple[str, ...], view: str, size: int = 128, columns: int = 2) -> Image.Image:
    """One row a class, ``columns`` classes side by side; ``view`` is "frontal" (PA, one AP) or "lateral"."""
    from PIL import Image, ImageDraw

    shown = (None, *SEVERITIES)
    block = len(shown) * size + GAP * 3
    rows = -(-len(names) // columns)
    sheet = Image.new("L", (columns * block - 3 * GAP, rows * (size + BAND)), 255)
    write = ImageDraw.Draw(sheet)
    for place, name in enumerate(names):
        left, top = (place // rows) * block, (place % rows) * (size + BAND)
        write.text((left, top + 1), f"{name}  (first: without it)", fill=0)
        for column, severity in enumerate(shown):
            picture = render(example(name, view, column, severity), size)
            sheet.paste(Image.fromarray(picture), (left + column * size, top + BAND))
    return sheet


def overview(size: int = 128, rows: int = 3, columns: int = 8) -> Image.Image:
    """Consecutive images of a cohort, findings as they come."""
    from PIL import Image

    from cxrlt_cli.contracts import PrepareRequest
    from cxrlt_plugins.datasets.phantom import build

    source = build(PrepareRequest(None, None, size, 0), count=rows * columns)
    pictures = np.stack([source.draw(index) for index in range(rows * columns)])
    return Image.fromarray(pictures.reshape(rows, columns, size, size).swapaxes(1, 2).reshape(rows * size, -1))


def main() -> None:
    """Write the sheets the documentation shows."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--size", type=int, default=104)
    options.add_argument("--out", type=Path, default=Path("docs/images"))
    options.add_argument("--names", nargs="*", default=list(FINDINGS))
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    overview(chosen.size).save(chosen.out / "phantom-overview.jpg", quality=70, optimize=True)
    for view in ("frontal", "lateral"):
        sheet = contact_sheet(tuple(chosen.names), view, chosen.size)
        sheet.save(chosen.out / f"phantom-{view}.jpg", quality=58, optimize=True)


if __name__ == "__main__":
    main()
