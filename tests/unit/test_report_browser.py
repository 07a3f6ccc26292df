"""The report of an evaluation in a browser: it fits a phone, sorts, and loads and reports nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from judged import HOSTILE, judged, worth

from cxrlt_cli.report import evaluation
from cxrlt_cli.report.contents import Ran
from cxrlt_cli.report.mistakes import worst

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here"),
]

CLASSES = (*HOSTILE[:3], "calcification_of_the_ascending_aorta", "nowhere")

#: Length of the first bar that rises, of the whole axis: 0.08 of 1.04 times the highest end of an interval.
BAR = 0.08 / (1.04 * 0.46)

PROBE = """
const body = document.querySelector("table.sortable tbody");
const names = () => [...body.rows].map((row) => row.cells[0].innerText);
const heads = [...body.parentElement.tHead.rows[0].cells];
const found = { width: innerWidth, needs: document.documentElement.scrollWidth, before: names() };
heads[3].querySelector("button").click();
found.down = names(); found.sorted = heads.map((h) => h.getAttribute("aria-sort"));
heads[3].querySelector("button").click();
found.up = names();
heads[0].querySelector("button").focus();
found.focus = document.activeElement.innerText;
heads[0].querySelector("button").click();
found.named = names(); found.sorted_last = heads.map((h) => h.getAttribute("aria-sort"));
const box = (node) => node.getBoundingClientRect();
const up = document.querySelector(".fall rect.up").closest(".fall");
const [label, note, lane] = [".label", ".note", ".lane"].map((part) => box(up.querySelector(part)));
found.stacked = label.bottom <= lane.top + 1; found.beside = label.right <= lane.left && lane.right <= note.left;
found.share = lane.width / box(up).width;
found.bar = box(up.querySelector("rect")).width / lane.width;
found.colours = ["up", "down", "end"].map((kind) => getComputedStyle(document.querySelector(`rect.${kind}`)).fill);
const long = [...document.querySelectorAll("table.sortable tbody th")];
found.over = long.filter((cell) => cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.innerText);
const scroll = body.closest(".scroll");
found.hidden = scroll.scrollWidth - scroll.clientWidth;
found.ap = box(body.rows[0].cells[3]).right - box(scroll).right;
found.letters = parseFloat(getComputedStyle(document.querySelector("svg.panel text")).fontSize)
  * box(document.querySelector("svg.panel")).width / 220;
const pick = document.querySelector("#spans"), after = (cell) => getComputedStyle(cell, "::after").content;
found.plain = [...body.querySelectorAll("td[title]")].map(after);
pick.click(); found.spanned = after(body.querySelector("td[title]")); pick.click();
found.bare = box(document.querySelector(".fall .bare")).height;
found.paper = getComputedStyle(document.body).backgroundColor;
parent.document.body.dataset.found = JSON.stringify(found);
"""


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}", "--window-size=1400,900", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one = judged(CLASSES)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        evaluation.render(one, Ran([("run", "x" * 200)], "a: b"), worst(one), worth=worth()), encoding="utf-8"
    )
    return path


def probed(page: Path, *options: str, width: int) -> dict[str, Any]:
    """What ``PROBE`` finds in a frame of this width: windows cannot be made narrower than 500 pixels."""
    text = page.read_text(encoding="utf-8")
    free = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", text)
    assert free != text
    copy = page.with_name("probed.html")
    inner = escape(free.replace("</body>", f"<script>{PROBE}</script></body>"))
    copy.write_text(f'<body><iframe srcdoc="{inner}" width="{width}" height="900"></iframe></body>', encoding="utf-8")
    dumped = chromium(copy, "--dump-dom", *options).stdout
    found = re.search(r'<body data-found="([^"]*)"', dumped)
    assert found, "the probe did not run to its end"
    return dict(json.loads(unescape(found[1])))


def test_it_fits_a_phone_and_sorts(page: Path) -> None:
    found = probed(page, "--blink-settings=preferredColorScheme=0", width=390)
    assert found["width"] == 390
    assert found["needs"] <= 390
    assert found["ap"] <= 0  # average precision is in sight before any scrolling
    assert found["letters"] > 9
    assert found["over"] == []  # no name runs into the next column
    one = judged(CLASSES)
    known = [name for name in one.classes if name != "nowhere"]
    ap = dict(zip(one.classes, one.result.per_class["ap"].tolist(), strict=True))
    assert found["before"] == [one.classes[c] for c in one.order]
    assert found["down"] == [*sorted(known, key=lambda name: -ap[name]), "nowhere"]
    assert found["up"] == [*sorted(known, key=lambda name: ap[name]), "nowhere"]  # what has no figure stays last
    assert found["sorted"] == [None] * 3 + ["descending"] + [None] * 12
    assert found["sorted_last"] == ["ascending"] + [None] * 15
    assert sorted(found["named"]) == sorted(found["before"])
    assert found["focus"].startswith("class")
    assert found["paper"] == "rgb(20, 24, 28)"
    assert found["stacked"]
    assert found["share"] > 0.99
    assert found["bar"] == pytest.approx(BAR, rel=0.01)
    assert found["bare"] == 0  # what is not drawn takes no room
    assert found["colours"] == ["rgb(87, 176, 236)", "rgb(237, 169, 59)", "rgb(93, 105, 115)"]


def test_a_wide_window_and_light(page: Path) -> None:
    found = probed(page, "--blink-settings=preferredColorScheme=1", width=1280)
    assert found["width"] == 1280
    assert found["needs"] <= 1280
    assert found["letters"] > 9
    assert set(found["plain"]) == {"none"}
    assert re.fullmatch(r'"[.\d]+ to [.\d]+"', found["spanned"])  # intervals that one asks for
    assert found["hidden"] == 0  # all columns of the classes are in sight
    assert found["paper"] == "rgb(255, 255, 255)"
    assert found["beside"]
    assert found["share"] > 0.5
    assert found["bar"] == pytest.approx(BAR, rel=0.01)
    assert found["bare"] > 0  # the level goes through
    assert found["colours"] == ["rgb(11, 108, 176)", "rgb(184, 110, 0)", "rgb(163, 174, 184)"]


def complaints(page: Path) -> list[str]:
    done = chromium(page, "--dump-dom", "--enable-logging=stderr", "--v=0")
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_the_browser_has_nothing_to_complain_of(page: Path) -> None:
    assert complaints(page) == []


def test_no_other_script_would_run(page: Path) -> None:
    smuggled = page.with_name("smuggled.html")
    text = page.read_text(encoding="utf-8")
    smuggled.write_text(text.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8")
    assert any("Content Security Policy" in line for line in complaints(smuggled))
