"""Takes the README's screenshots: ``python docs/tools/screenshot.py`` writes a report, opens it in Chromium, and looks.

One picture in light colours, one in dark ones, of what a person sees of a report's first screens. Needs the extras
``browser`` and ``plots``, and Chromium with its driver.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

from memback.commands import main as memback

IMAGES = Path(__file__).parents[1] / "images"
PROFILE = ("profile", "gpt2-small", "--dry")
WIDTH, HEIGHT = 1280, 1458
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.html")
        assert memback([*PROFILE, "--quiet", "-o", str(report)]) == 0
        for theme in ("light", "dark"):
            picture = Image.open(io.BytesIO(seen(report, theme))).convert("RGB")
            path = IMAGES / f"report-{theme}.png"
            picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"Wrote {path}")


def seen(report: Path, theme: str) -> bytes:
    """The report as a PNG."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for switch in (*SWITCHES, f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(f"{report.as_uri()}?theme={theme}")
        end = time.monotonic() + 60
        while not browser.execute_script("return document.querySelector('.main-svg') !== null"):
            assert time.monotonic() < end, "the report was not drawn"
            time.sleep(0.1)
        time.sleep(1)
        return bytes(browser.get_screenshot_as_png())
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
