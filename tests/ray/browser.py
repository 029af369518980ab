"""A headless Chromium for tests of pages."""

import shutil

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

SWITCHES = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")


def start_chromium(options: ChromeOptions, width: int, height: int) -> Chrome:
    """Starts the system's Chromium; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its driver; on Debian: apt-get install chromium chromium-driver")
    options.binary_location = chromium
    for switch in (*SWITCHES, f"window-size={width},{height}"):
        options.add_argument(f"--{switch}")
    return Chrome(options=options, service=Service(driver))
