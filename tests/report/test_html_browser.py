"""The HTML report in a real browser: clicked through, by mouse and by keys, at three widths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import BAD, ZEROS, auditor
from tests.report.test_html import NET

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no Chromium with its driver: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1300,900",
)  # fmt: skip
WIDTHS = {"phone": 360, "tablet": 820, "desktop": 1400}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with findings of three severities, a problem, fixes with their proofs, and a model."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        Path("net.py").write_text(NET)
        Path("zeros.py").write_text(ZEROS)
        Path("broken.py").write_text(BAD + "def f(:\n")
        targets = ("net.py", "zeros.py", "broken.py")
        result = auditor("audit", *targets, "--isolated", "--diff", "--unsafe-fixes", "--report", "report.html")
        assert result.exit_code == 2, result.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def emulate(browser: Any, scheme: str = "light") -> None:
    """A system with this colour scheme, whose user wants no motion."""
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    emulate(browser)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get(page.as_uri())
    return browser


def all_of(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements(By.CSS_SELECTOR, selector))


def shown(browser: Any, selector: str) -> list[Any]:
    return [part for part in all_of(browser, selector) if part.is_displayed()]


def press(browser: Any, *keys: str) -> None:
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def click(browser: Any, part: Any) -> None:
    """Scroll it clear of what sticks to the window's edge, then click it."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", part)
    part.click()


def background(browser: Any) -> str:
    return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_it_loads_without_complaint_and_without_network(opened: Any) -> None:
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "DEBUG"] == []
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(shown(opened, "#findings .card")) >= 3


def test_filters(opened: Any) -> None:
    cards = len(shown(opened, "#findings .card"))
    (errors,) = all_of(opened, ".filter button[data-level=error]")
    errors.click()
    left = shown(opened, "#findings .card")
    assert 0 < len(left) < cards
    assert not [card for card in left if card.get_attribute("data-severity") == "error"]
    assert errors.get_attribute("aria-pressed") == "false"
    errors.click()
    press(opened, "/")
    press(opened, "mod004 net.py")
    left = shown(opened, "#findings .card")
    assert [card.find_element(By.CSS_SELECTOR, ".rule").text for card in left] == [
        "MOD004 functional-dropout-always-on"
    ]
    assert all_of(opened, ".filter output")[0].text == f"1 of {cards}"


def test_keys_step_through_the_findings(opened: Any) -> None:
    press(opened, "j")
    first = opened.switch_to.active_element.get_attribute("id")
    press(opened, "j")
    second = opened.switch_to.active_element.get_attribute("id")
    press(opened, "k")
    assert [first, second, opened.switch_to.active_element.get_attribute("id")] == [
        "finding-1",
        "finding-2",
        "finding-1",
    ]


def test_colours_follow_the_system_and_the_button(opened: Any) -> None:
    emulate(opened, "dark")
    dark = background(opened)
    (button,) = all_of(opened, "#theme")
    button.click()
    light = background(opened)
    assert light != dark
    assert "light" in button.get_attribute("aria-label")
    opened.refresh()
    assert background(opened) == light  # it is remembered
    all_of(opened, "#theme")[0].click()
    assert background(opened) == dark


def test_layers_fold_and_findings_lead_to_them(opened: Any) -> None:
    rows = len(shown(opened, "table.layers tbody tr"))
    click(opened, all_of(opened, "button.twist")[0])
    assert len(shown(opened, "table.layers tbody tr")) < rows
    chip = next(chip for chip in shown(opened, "#findings a.chip") if chip.text == "down")
    target = chip.get_attribute("href").partition("#")[2]
    click(opened, chip)
    assert opened.find_element(By.ID, target).is_displayed()
    opened.execute_script("for (const tree of document.querySelectorAll('details.tree')) tree.open = false")
    assert not shown(opened, "table.layers")
    row = all_of(opened, "table.layers tbody tr")[0].get_attribute("id")
    opened.execute_script("location.hash = arguments[0]", f"#{row}")
    WebDriverWait(opened, 5).until(lambda _: opened.find_element(By.ID, row).is_displayed())


def test_plots_read_out_along_the_arrow_keys(opened: Any) -> None:
    area = all_of(opened, ".plot .area")[0]
    opened.execute_script("arguments[0].focus()", area)
    press(opened, Keys.HOME)
    first = shown(opened, ".readout")[0].text
    press(opened, Keys.ARROW_RIGHT)
    second = shown(opened, ".readout")[0].text
    assert first
    assert second
    assert first != second
    assert "at" in area.get_attribute("aria-label")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_overflows(opened: Any, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    small = "return [...document.querySelectorAll('button')].filter(b => b.offsetHeight && b.offsetHeight < 20).length"
    assert opened.execute_script(small) == 0


CONTRAST = """
const channel = (v) => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (part) => {
  for (; part; part = part.parentElement) {
    const colour = parse(getComputedStyle(part).backgroundColor);
    if (colour.length < 4 || colour[3]) return colour;
  }
  return [255, 255, 255];
};
const low = new Set();
for (const part of document.querySelectorAll(".auditor *")) {
  const speaks = [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!speaks || !part.offsetParent || part.closest("svg") || part.matches(".sr, .skip")) continue;
  const a = luminance(parse(getComputedStyle(part).color)), b = luminance(behind(part));
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) low.add(`${part.tagName}.${part.className} ${part.textContent.slice(0, 30)} ${ratio}`);
}
return [...low];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(opened: Any, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 for all text."""
    emulate(opened, scheme)
    opened.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert opened.execute_script(CONTRAST) == []


def test_everything_is_on_paper(opened: Any) -> None:
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert all(part.get_attribute("open") for part in all_of(opened, "details"))
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 20_000
