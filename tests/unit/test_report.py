"""The report of a prepared dataset: self-contained, escaped, and showing what is there."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlt_cli.commands import prepare
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.report import dataset
from cxrlt_cli.report.svg import Bar, bars, heat_map

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend((name, value or "") for name, value in attributes)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend((name, value or "") for name, value in attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose names are markup, with a duplicate and an unreadable file."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    rows = ["id,patient,<b>Mass</b>,Nodule & more"]
    (folder / "images").mkdir()
    for index in range(130):
        pixels = rng.integers(0, 256, (20, 30)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"<i>{index}.png")
        rows.append(f"<i>{index},<u>{index}</u>,{index % 2},0")
    (folder / "images" / "<i>7.png").write_bytes(b"broken")
    (folder / "images" / "<i>8.png").write_bytes((folder / "images" / "<i>9.png").read_bytes())
    (folder / "labels.csv").write_text("\n".join(rows))
    prepare.run("csv", folder / "out", images=folder / "images", labels=folder / "labels.csv", size=24, jobs=1, folds=2)
    return folder / "out"


def test_the_page_needs_nothing_from_anywhere(phantom: Path) -> None:
    text = (phantom / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_every_class_is_named_with_its_counts(phantom: Path) -> None:
    text = (phantom / "report.html").read_text()
    counts = load_prepared(phantom).info["counts"]
    for name, positives, _ in dataset.class_rows(counts):
        assert f'<span>{name}</span><span class="dim">{" · ".join(map(str, positives))}' in text


def test_names_are_escaped(hostile: Path) -> None:
    text = (hostile / "report.html").read_text()
    page = Page(text)
    assert not {"b", "u"} & set(page.tags)
    assert "&lt;b&gt;Mass&lt;/b&gt;" in text
    assert "Nodule & more" in page.text
    assert "<i>8, <i>9" in page.text


def test_duplicates_quarantine_and_folds_are_shown(hostile: Path) -> None:
    text = Page((hostile / "report.html").read_text()).text
    assert "2 images in 1 group of equal pixels carry different patient identifiers" in text
    assert "1 images were left out" in text
    assert "is not an image that can be read" in text
    assert re.search(r"2 folds of \d+, \d+ images", text)
    assert "30 x 20" in text


def test_classes_without_positives_are_named(hostile: Path) -> None:
    assert dataset.absent_classes(load_prepared(hostile).info["counts"]) == [
        "train: Nodule & more",
        "dev: Nodule & more",
    ]


# -- drawings ------------------------------------------------------------------------------------------------------


def widths(drawing: str, series: int) -> list[float]:
    return [float(value) for value in re.findall(rf'<rect class="s{series}"[^>]* width="([\d.]+)%"', drawing)]


def test_bars_are_in_proportion() -> None:
    drawing = bars([Bar("a", (10, 5)), Bar("b", (0, 20))], title="t")
    assert widths(drawing, 0) == [50, 0]
    assert widths(drawing, 1) == [25, 100]
    Page(drawing)


def test_logarithmic_bars_are_in_proportion() -> None:
    first, second, third, none = widths(bars([Bar(str(v), (v,)) for v in (1000, 100, 10, 0)], title="t", log=True), 0)
    assert first == 100
    assert first - second == pytest.approx(second - third, abs=0.02)
    assert none == 0


def test_series_of_nothing_are_left_out() -> None:
    drawing = bars([Bar("a", (3, 0, 4)), Bar("b", (1, 0, 0))], title="t")
    assert widths(drawing, 1) == []
    assert len(widths(drawing, 2)) == 2


@pytest.mark.parametrize("values", [[], [0], [1], [7], [1234567]])
@pytest.mark.parametrize("log", [True, False])
def test_any_amount_can_be_drawn(values: list[int], log: bool) -> None:
    Page(bars([Bar("x", (value,)) for value in values], title="t", log=log))


def test_a_map_draws_every_known_cell() -> None:
    drawing = heat_map(["a", "<b>"], [[1.0, 0.25], [math.nan, math.nan]], title="t")
    page = Page(drawing)
    assert page.tags.count("rect") == 2
    assert 'fill-opacity="0.50"' in drawing
    assert "a \u2192 &lt;b&gt;: 25.0 %" in drawing
