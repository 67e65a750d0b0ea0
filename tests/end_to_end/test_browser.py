"""The page in a browser, as wide as a desk and as narrow as a phone, light and dark; the figures are read back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pages import contrast
from running import call, distilled, make_teacher, summary
from unixkd.config import MethodConfig
from unixkd.names import flops, label_of
from unixkd.training.run import run

pytest.importorskip("matplotlib", reason="report pages need matplotlib")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed; none is downloaded"),
]

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
WIDEST = 1  # pixel that rounding may add


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Plain KD and UNIX on a few digits, their names as long as a variant's, and their page."""
    base = tmp_path_factory.mktemp("browser")
    make_teacher(base / "teacher")
    for name in ("kd", "unix"):
        run(distilled(base / "teacher", MethodConfig(name), epochs=3), base / name)
    method = MethodConfig("unix", keep=0.5, steepness=1000.0, scorer="margin")
    long = replace(distilled(base / "teacher", method, epochs=3), label=label_of(method))
    run(long, base / "long")
    assert call("report", base, "--html", base / "report.html") == 0
    return base


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids=" ".join)
def shown(request, browser, folder) -> Iterator[Any]:
    """The page at one size in one scheme; what it loads and complains of is noted, and must be nothing."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, told, asked = context.new_page(), [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda one: asked.append(one.url))
    address = (folder / "report.html").as_uri()
    page.goto(address)
    yield page
    assert told == []
    assert [url for url in asked if not url.startswith("data:image/png")] == [address]
    context.close()


def test_nothing_is_wider_than_the_screen(shown):
    def overflow() -> int:
        return shown.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    assert overflow() <= 0
    shown.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert overflow() <= 0
    outside = shown.evaluate(
        "[...document.querySelectorAll('section, .answer, figure, svg, pre, .scroll, dl, h1, h2, h3')]"
        f".filter(one => one.getBoundingClientRect().right > window.innerWidth + {WIDEST}).map(one => one.outerHTML)"
    )
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_of_an_evaluation_fits_too_and_fetches_nothing(size, scheme, browser, folder):
    if not (page_file := folder / "evaluation.html").exists():
        assert call("evaluate", folder / "unix", "--rounds", 2, "--html", page_file) == 0
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, asked = context.new_page(), []
    page.on("request", lambda one: asked.append(one.url))
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.locator(".answer").count() == 3
    cut = page.evaluate(
        "[...document.querySelectorAll('.heat text')].filter(one => { const a = one.getBoundingClientRect(),"
        " b = one.closest('svg').getBoundingClientRect(); return a.left < b.left - 1 || a.top < b.top - 1 }).length"
    )
    assert cut == 0
    assert [url for url in asked if not url.startswith("data:image/")] == [page_file.as_uri()]
    context.close()


def test_the_answers_lie_above_the_fold_and_are_those_of_the_summary(shown, folder):
    height = shown.viewport_size["height"]
    answers = shown.locator(".answer")
    assert answers.count() == 3
    for box in answers.all():
        place = box.bounding_box()
        assert place["y"] >= 0
        assert place["y"] + place["height"] <= height
    unix, kd = summary(folder / "unix"), summary(folder / "kd")
    got, cost, plain = (
        value.replace("\u00a0", " ") for value in shown.locator(".answer .value").all_inner_texts()
    )
    assert got == f"{100 * unix['accuracy']['last']:.2f} %"
    assert cost == f"{100 * unix['cost']['relative_to_kd']['backward_2x']:.1f} %"
    own = kd["cost"]["flops"]
    assert plain == flops(own["teacher"] + 3 * own["student_forward"])


def test_the_table_has_the_figures_of_the_summaries(shown, folder):
    rows = [row.split("\t") for row in shown.locator("section:has(#results) table").inner_text().splitlines()]
    cells = {row[0].strip(): row for row in rows if len(row) > 5}
    for name in ("kd", "unix"):
        told = summary(folder / name)
        relative = told["cost"]["relative_to_kd"].values()
        assert f"{100 * told['accuracy']['last']:.2f}" in cells[name]
        assert all(f"{100 * share:.1f}" in cells[name] for share in relative)


def test_the_keyboard_reaches_everything(shown):
    """The skip link first, then links, tables, commands and what is folded away; each shows that it has the focus."""
    order = []
    for _ in range(200):
        shown.keyboard.press("Tab")
        here = shown.evaluate(
            "(() => { const one = document.activeElement; return one === document.body ? null :"
            " [one.tagName, one.className, getComputedStyle(one).outlineStyle] })()"
        )
        if here is None:
            break
        order.append(here)
    assert order[0][:2] == ["A", "skip"]
    assert all(style != "none" for _, _, style in order)
    tags = [tag for tag, _, _ in order]
    assert tags.count("SUMMARY") == shown.locator("summary").count() > 3
    assert sum(name == "scroll" for _, name, _ in order) == shown.locator(".scroll:visible").count() > 3
    assert tags.count("PRE") == shown.locator("pre:visible").count() > 2


def test_details_open_with_a_key_and_the_skip_link_skips(shown):
    folded = shown.locator("details").first
    folded.locator("summary").focus()
    shown.keyboard.press("Enter")
    assert folded.get_attribute("open") is not None
    shown.locator(".skip").focus()
    assert shown.locator(".skip").bounding_box()["y"] >= 0  # it comes into view
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "results"


def test_words_stand_out_from_what_is_behind_them(shown):
    """The colours as the browser computes them; words in charts too."""
    pairs = shown.evaluate(
        """() => [...document.querySelectorAll('h1, h2, h3, p, th, td, dt, dd, a, summary, pre, figcaption, text')]
        .filter(one => one.textContent.trim() && one.getClientRects().length).map(one => {
            let behind = one;
            while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            const style = getComputedStyle(one);
            const ink = one instanceof SVGElement ? style.fill : style.color;
            return [one.tagName, ink, getComputedStyle(behind).backgroundColor];
        })"""
    )
    colours = {tuple(pair) for pair in pairs}
    assert {tag for tag, _, _ in colours} >= {"H1", "P", "TD", "A", "SUMMARY", "text"}
    faint = [(tag, ink, behind) for tag, ink, behind in colours if contrast(hexed(ink), hexed(behind)) < 4.5]
    assert faint == []


def hexed(colour: str) -> str:
    """`rgb(1, 2, 3)` as `#010203`."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_dark_is_dark(shown):
    behind = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    prefers_dark = shown.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (contrast(hexed(behind), "#000000") < 2) == prefers_dark


def test_the_pictures_are_shown(shown, folder):
    chosen, left = (
        json.loads((folder / "unix" / name).read_text()) for name in ("selection.json", "disagreements.json")
    )
    shown_names = shown.evaluate(
        "[...document.images].filter(one => one.naturalWidth === 8).map(one => one.alt)"
    )
    assert len(shown_names) == 48 + len(left["shown"])
    for entry in left["shown"]:
        said = f"the teacher says {entry['teacher']} ("
        start = f"evaluation image {entry['index']}, {entry['label']}: {said}"
        assert any(alt.startswith(start) for alt in shown_names)
    for name in ("most_kept", "least_kept", "most_mixed"):
        for entry in chosen[name]:
            assert any(
                alt.startswith(f"training image {entry['index']}, {entry['label']}") for alt in shown_names
            )
