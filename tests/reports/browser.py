"""Chromium for tests, as people have it, but that it may ask for nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium(folder: Path, width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A browser with a profile of its own in ``folder``, where downloads go too."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra browser")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.fail("Chromium is not installed; on Debian: apt-get install chromium chromium-driver", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (*SWITCHES, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Page(browser)
    finally:
        browser.quit()


class Page:
    """A report that is open."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, path: Path, theme: str = "light") -> float:
        """Open a report; seconds until all that is in sight has been drawn."""
        self.browser.get_log("performance")  # what was before is another page's
        began = time.perf_counter()
        self.browser.get(f"{path.as_uri()}?theme={theme}")
        self.wait("return document.documentElement.dataset.ready === 'yes'")
        return time.perf_counter() - began

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.browser.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 60) -> Any:
        """What a script returns as soon as that is something."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"waited {seconds} s for: {script}"
            time.sleep(0.02)
        return found

    def show(self, selector: str) -> None:
        """Scroll something into the middle, and wait until it is drawn where it is a plot."""
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector
        )
        self.wait(
            f"const e = document.querySelector('{selector}');"
            "return !e.classList.contains('plot') || e.hidden || e.querySelector('.main-svg') !== null"
        )

    def text(self, selector: str) -> str:
        """An element's text, shown or not."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def click(self, selector: str) -> None:
        """Click an element, wherever it is."""
        self.run("document.querySelector(arguments[0]).click()", selector)

    def complaints(self) -> list[str]:
        """What the browser's console holds."""
        return [str(entry["message"]) for entry in self.browser.get_log("browser")]

    def requests(self) -> set[str]:
        """The addresses that were asked for, but for what is inside of the page or of the browser."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {url for url in asked if not url.startswith(("data:", "blob:", "chrome:"))}
