"""Pages in a real browser: no console errors, every picture decoded, the points of the data drawn, no sideways scroll.

Needs Chromium (Debian: apt-get install chromium), which .ci/run installs; skips without it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from reported import CONFIG, GRID_STEPS, STEPS, loss_at, make_dataset, make_run, make_samples, make_scores

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.report.driver import compare, report
from pipeline.report.render.scales import figures
from pipeline.storage.store import resolve

pytestmark = pytest.mark.e2e

PHONE, DESK = 375, 1440
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"
BROKEN = "[...document.images].filter(image => !(image.complete && image.naturalWidth)).length"
BEYOND = """[...document.querySelectorAll('main *')].filter(element => !element.closest('.wide, pre, svg')
  && element.getBoundingClientRect().right > window.innerWidth + 1).map(element => element.outerHTML.slice(0, 200))"""
CHART = "document.querySelector('svg[aria-label^=\"Loss.\"]')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with its samples and data, and a comparison of two runs whose names are long."""
    root = tmp_path_factory.mktemp("pages")
    base = resolve(str(root), StorageConfig())
    run, samples, dataset = base.child("runs/digits"), base.child("samples/digits"), base.child("datasets/digits")
    other = base.child("runs/a-run-whose-name-goes-on-for-quite-a-while-and-has-no-place-to-break-it")
    make_run(run)
    make_run(other, steps=150, config=Config.model_validate({"train": {"lr": 1e-3}}))
    make_samples(samples, num_classes=10)
    make_scores(samples)
    make_dataset(dataset)
    report(CONFIG, [run.uri, samples.uri, dataset.uri], check=True)
    compare(CONFIG, [run.uri, other.uri])
    return {name: root / "runs/digits" / f"{name}.html" for name in ("report", "comparison")}


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (DESK, True)])
def test_a_page_renders_without_errors(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool):
    browser.complaints.clear()
    browser.open(pages[name], width, dark)
    assert browser.evaluate(BROKEN) == 0
    assert browser.evaluate("document.images.length") == (3 + len(GRID_STEPS) if name == "report" else 2)
    page, window = browser.evaluate(WIDTHS)
    assert (page, window) == (width, width), "it scrolls sideways"
    assert browser.evaluate(BEYOND) == []
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.evaluate(WIDTHS)[0] == width, "it scrolls sideways with everything opened"
    paper = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(int(part) for part in paper[4:-1].split(",")) < 3 * 80) == dark
    assert browser.complaints == []


def test_a_chart_draws_the_points_and_shows_the_values(browser: Browser, pages: dict[str, Path]):
    """The geometry in the browser: the curve falls from step 1 to the last step."""
    browser.open(pages["report"], DESK)
    line = f"{CHART}.querySelector('path.line')"
    assert browser.evaluate(f"{line}.getAttribute('d').match(/[ML]/g).length") == STEPS
    first, last = browser.evaluate(
        f"[0, {line}.getTotalLength()].map(at => [{line}.getPointAtLength(at).x, {line}.getPointAtLength(at).y])"
    )
    box = browser.evaluate(f"(({{x, y, width, height}}) => [x, y, width, height])({line}.getBBox())")
    assert first == pytest.approx([box[0], box[1]], abs=0.2), "highest at the first step"
    assert last == pytest.approx([box[0] + box[2], box[1] + box[3]], abs=0.2), "lowest at the last"

    shown = f"[...{CHART}.querySelectorAll('.tip')].filter(tip => getComputedStyle(tip).opacity === '1')"
    assert browser.evaluate(f"{shown}.length") == 0
    browser.evaluate(f"{CHART}.scrollIntoView({{block: 'center'}})")
    x, y = browser.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({line}.getBoundingClientRect())")
    browser.move_to(x, y)
    told = browser.evaluate(f"{shown}.map(tip => [...tip.querySelectorAll('tspan')].map(line => line.textContent))")
    assert len(told) == 1
    step = int(told[0][0].removeprefix("step "))
    assert step == pytest.approx(STEPS / 2, abs=3)
    assert told[0][1] == f"every step: {figures(loss_at(step))}"


def test_print_uses_light_colours_and_omits_hidden_tables(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["report"], DESK, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    displays = "[...new Set([...document.querySelectorAll('.data, .band')].map(one => getComputedStyle(one).display))]"
    assert browser.evaluate(displays) == ["none"]
    assert browser.evaluate("document.querySelector('section > .wide').checkVisibility()")
