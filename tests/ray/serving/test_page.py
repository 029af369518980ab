"""The page of the service in a headless Chromium: what people do with it. Its pictures stay in tmp_path."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from reddit_core.brightness import GRAY_WEIGHTS
from tests.ray.browser import start_chromium
from tests.ray.processes import wait_until
from tests.ray.serving.conftest import Service

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving")]
PAGE_TIMEOUT_S = 120
PHONE = (390, 844)
Found = TypeVar("Found")


@dataclass
class Page:
    """The page in a browser."""

    driver: Chrome
    service: Service
    downloads: Path

    def at(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def wait(self, look: Callable[[WebDriver], Found]) -> Found:
        return WebDriverWait(self.driver, PAGE_TIMEOUT_S).until(look)

    def wait_for(self, text: str) -> None:
        self.wait(lambda _: text in self.at("message").text)

    def open(self) -> None:
        """With the token, as a person gives it."""
        self.driver.get(self.service.url)
        self.wait(lambda _: self.at("token-row").is_displayed())
        self.at("token").send_keys(self.service.token)
        self.at("token-set").click()

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """What a picture of the page holds, at its own size."""
        script = """const image = document.getElementById(arguments[0]), canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext('2d').drawImage(image, 0, 0);
            return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""
        width = self.driver.execute_script("return document.getElementById(arguments[0]).naturalWidth", name)
        values = np.array(self.driver.execute_script(script, name), dtype=np.uint8)
        return values.reshape(-1, int(width), 4)[:, :, :3]

    def split(self) -> str:
        script = "return getComputedStyle(document.getElementById('compare')).getPropertyValue('--split').trim()"
        return str(self.driver.execute_script(script))


@pytest.fixture
def page(service: Service, tmp_path: Path) -> Iterator[Page]:
    options = ChromeOptions()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = start_chromium(options, 1000, 1000)
    page = Page(chrome, service, tmp_path)
    page.open()
    yield page
    complaints = [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
    chrome.quit()
    expected = ("401", "415")  # the browser itself reports answers that are errors
    assert [entry for entry in complaints if not any(status in entry["message"] for status in expected)] == []


@pytest.fixture
def night(photographs: dict[str, NDArray[np.uint8]], tmp_path: Path) -> Path:
    path = tmp_path / "my night.jpg"
    Image.fromarray(photographs["rocket"] // 5).save(path, quality=95)
    return path


def test_a_photograph_is_enhanced_compared_changed_and_downloaded(page: Page, night: Path) -> None:
    page.at("file").send_keys(str(night))
    page.wait_for("my night.jpg: enhanced in")
    before, first = page.pixels("before"), page.pixels("after")
    assert before.shape == first.shape == (96, 128, 3)
    assert abs(before.mean() - np.asarray(Image.open(night)).mean()) < 1

    # The slider follows the pointer and the keys.
    assert page.split() == "50%"
    picture = page.at("compare")
    ActionChains(page.driver).move_to_element(picture).click_and_hold().move_by_offset(200, 0).release().perform()
    dragged = int(page.split().rstrip("%"))
    assert 60 <= dragged <= 95
    page.at("split").send_keys(Keys.ARROW_LEFT)
    assert page.split() == f"{dragged - 1}%"

    # A change of brightness changes the picture, and a change of steps too.
    page.driver.execute_script(
        "const b = document.getElementById('brightness'); b.value = 0.7; b.dispatchEvent(new Event('input'))"
    )
    page.wait(lambda _: page.pixels("after").mean() > first.mean() + 20)
    assert page.at("brightness-value").text == "0.70" and not page.at("auto").is_selected()
    bright = page.pixels("after")
    assert abs((bright @ np.array(GRAY_WEIGHTS)).mean() / 255 - 0.7) < 0.02
    Select(page.at("steps")).select_by_value("8")
    page.wait(lambda _: not np.array_equal(page.pixels("after"), bright))

    page.at("download").click()
    page.wait_for("Saved my night-enhanced.jpg")
    result = page.downloads / "my night-enhanced.jpg"
    wait_until(result.exists)
    assert (Image.open(result).format, Image.open(result).size) == ("JPEG", (128, 96))
    reply = page.service.enhance(night.read_bytes(), "steps=8&brightness=0.7&format=auto")
    assert hashlib.sha256(result.read_bytes()).digest() == hashlib.sha256(reply.data).digest()
    page.driver.save_screenshot(str(page.downloads / "page.png"))


def test_an_unreadable_file_gets_a_sentence(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("no photograph")
    page.at("file").send_keys(str(broken))
    page.wait_for("That did not work: it is not an image in one of PNG, JPEG")
    assert "error" in page.at("message").get_attribute("class")
    assert not page.at("compare").is_displayed()


def test_on_a_phone_by_keyboard(page: Page, night: Path) -> None:
    page.driver.set_window_size(*PHONE)
    page.at("sample").send_keys(Keys.ENTER)
    page.wait(lambda driver: driver.execute_script("return document.getElementById('before').naturalWidth") == 600)
    page.at("file").send_keys(str(night))  # in place of the sample, which these small tiles take long for
    page.wait_for("my night.jpg: enhanced in")
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.driver.execute_script(script) == 0  # nothing sticks out
    reached = []
    page.driver.execute_script("document.getElementById('file').focus()")
    for _ in range(12):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(page.driver.switch_to.active_element.get_attribute("id"))
    assert {"sample", "split", "brightness", "auto", "steps", "format", "download"} <= set(reached)


def test_the_page_asks_nobody_else(page: Page, night: Path) -> None:
    page.at("file").send_keys(str(night))
    page.wait_for("my night.jpg: enhanced in")
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    asked = [url for url in page.driver.execute_script(script) if not url.startswith("blob:")]
    assert len(asked) >= 4 and all(url.startswith(page.service.url) for url in asked)
