"""The pages of runs in a real browser: no error on the console, nothing wider than a phone's screen, every figure has a title.

Needs playwright and Debian's chromium (or one that playwright finds by itself): `make test-browser`.
"""

import json
import shutil

import pytest

from dcore_jax.data import Rejections
from dcore_jax.distill.report import write_report
from dcore_jax.preview import Segment, html_page
from dcore_jax.rl.page import write_page as write_rl_page
from dcore_jax.sft.page import write_page as write_sft_page
from test_distill_report import outcomes
from test_report import rl_folder, sft_folder, whole_page

pytestmark = pytest.mark.browser

WIDE = "a_word_of_a_model_that_has_no_place_to_break_" * 9


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as running:
        try:
            found = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            if chromium:
                raise
            pytest.skip(f"no browser: apt-get install chromium ({str(error).splitlines()[0]})")
        yield found
        found.close()


def sft(tmp_path):
    return write_sft_page(sft_folder(tmp_path / "run"), "1 x cpu")


def rl(tmp_path):
    folder = rl_folder(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "evaluation_answers.jsonl").read_text().splitlines()]
    rows += [{**row, "origin": WIDE, "query": WIDE, "response": WIDE} for row in rows]
    (folder / "evaluation_answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_rl_page(folder)


def distill(tmp_path):
    path, config = tmp_path / "report.html", {"model": WIDE, "seeds": [WIDE], "reason": {WIDE: WIDE}}
    seeds = Rejections(counts={WIDE: 1}, examples={WIDE: WIDE})
    write_report(outcomes(), path, seconds=60.0, config=config, rejected_seeds=seeds)
    return path


def preview(tmp_path):
    path = tmp_path / "preview.html"
    path.write_text(html_page(WIDE, WIDE, [(WIDE, [Segment(WIDE, "call", True)])]), encoding="utf-8")
    return path


def every_block(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(whole_page(WIDE), encoding="utf-8")
    return path


@pytest.mark.parametrize("write", [sft, rl, distill, preview, every_block])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_says_nothing_on_the_console_and_names_its_figures(
    browser, tmp_path, write, scheme
):
    path, said = write(tmp_path), []
    for width in (400, 1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith("file:") else said.append(asked.url))
        page.goto(path.resolve().as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            """width => [...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll > *')
               && one.getBoundingClientRect().right > width + 1).map(one => one.outerHTML.slice(0, 80))""",
            width,
        )
        assert outside == []
        titles = page.evaluate(
            "[...document.querySelectorAll('figure')].map(one => one.querySelector('figcaption')?.innerText ?? '')"
        )
        assert all(title.strip() for title in titles) and (titles or write is preview)
        named = "[...document.querySelectorAll('svg.chart')].every(one => one.querySelector('title')?.textContent.trim())"
        assert page.evaluate(named)
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light == (scheme == "light")
        context.close()
    assert said == []
