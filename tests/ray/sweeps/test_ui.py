"""What people see of a sweep in MLflow's own pages, in a headless Chromium. The pages' pictures stay in tmp_path."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.config.jobs import TuneConfig
from pipelines.config.parts import StudentTrackingConfig
from pipelines.search.tune import tune
from tests.ray.browser import start_chromium

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]  # with the others that need the server
PAGE_TIMEOUT_S = 120
EXPANDER = "button[data-component-id*='runnamecellrenderer']"
CURVES = ".js-plotly-plot .scatterlayer .trace path.js-line"
CHART_SEARCH = "input[placeholder='Search metric charts']"
PLOT = "img[alt='plots/refine_weight.png']"
Found = TypeVar("Found")


@dataclass
class Browser:
    """A window on a tracking server's pages."""

    driver: Chrome
    uri: str
    pictures: Path

    def open(self, page: str) -> None:
        self.driver.get("about:blank")  # the part after # alone would not load anything
        self.driver.get(f"{self.uri}/#/experiments/{page}")

    def wait(self, look: Callable[[WebDriver], Found | None]) -> Found:
        """What `look` finds once it finds something."""
        return WebDriverWait(self.driver, PAGE_TIMEOUT_S, ignored_exceptions=[WebDriverException]).until(look)

    def links_to(self, run_ids: set[str]) -> dict[str, str]:
        """The text of the links to runs by run id, as soon as there is one to each of them."""

        def look(driver: WebDriver) -> dict[str, str] | None:
            links = driver.find_elements(By.CSS_SELECTOR, "a[href*='/runs/']")
            texts = {str(link.get_attribute("href")).rpartition("/")[2]: link.text for link in links}
            return texts if run_ids <= {run_id for run_id, text in texts.items() if text} else None

        return self.wait(look)

    def click(self, element: WebElement) -> None:
        """Clicks, also where something lies in front for a moment."""
        self.driver.execute_script("arguments[0].click()", element)

    def picture(self, name: str) -> None:
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))


@pytest.fixture
def browser(mlflow_server, tmp_path: Path) -> Iterator[Browser]:
    chrome = start_chromium(ChromeOptions(), 1300, 900)
    yield Browser(chrome, mlflow_server.uri, tmp_path)
    chrome.quit()


@pytest.fixture
def runs(inputs, mlflow_server) -> list[Run]:
    """The runs of a grid of two trials with two workers each: the parent, then its children."""
    track = StudentTrackingConfig(uri=mlflow_server.uri, experiment="seen")
    base = inputs.distillation(tracking=track)
    two_workers = replace(base.compute, workers=2)
    config = TuneConfig(
        distill=replace(base, compute=two_workers),
        output=str(inputs.root / "seen"),
        search="grid",
        space=("refine_weight=choice(0,0.4)",),
        asha=False,
    )
    rows = tune(config).rows
    assert {(row["refine_weight"], row["outcome"]) for row in rows} == {(0.0, "finished"), (0.4, "finished")}
    client = MlflowClient(mlflow_server.uri)
    found = client.search_runs([client.get_experiment_by_name("seen").experiment_id])
    return sorted(found, key=lambda run: "mlflow.parentRunId" in run.data.tags)


def width_of(driver: WebDriver, image: WebElement) -> int:
    """The width in pixels of an image as it was loaded; 0 until it is."""
    return int(driver.execute_script("return arguments[0].naturalWidth", image))


@pytest.mark.timeout(1200)
def test_the_pages_show_the_sweep_its_trials_their_charts_and_images(browser: Browser, runs: list[Run]) -> None:
    parent, *children = runs
    experiment, trials = parent.info.experiment_id, {run.info.run_id: run.info.run_name for run in children}
    assert len(trials) == 2

    # Among all runs only the sweep is shown, and its trials when it is opened; their curves are in one chart.
    browser.open(f"{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning")
    assert set(browser.links_to({parent.info.run_id})) == {parent.info.run_id}
    for button in browser.driver.find_elements(By.CSS_SELECTOR, "button[aria-label='Close']"):
        browser.click(button)  # the assistant's column, which leaves the charts no room
    browser.click(browser.wait(lambda driver: driver.find_elements(By.CSS_SELECTOR, EXPANDER))[0])
    links = browser.links_to({*trials, parent.info.run_id})
    assert links == {**trials, parent.info.run_id: parent.info.run_name}
    browser.wait(lambda driver: driver.find_elements(By.CSS_SELECTOR, CHART_SEARCH))[0].send_keys("validation/psnr$")
    browser.wait(lambda driver: len(driver.find_elements(By.CSS_SELECTOR, CURVES)) >= len(trials))
    browser.picture("runs")

    browser.open(f"{experiment}/runs/{parent.info.run_id}")
    links = browser.links_to(set(trials))
    assert trials.items() <= links.items()
    browser.picture("parent")

    browser.open(f"{experiment}/runs/{children[0].info.run_id}/model-metrics")
    browser.wait(lambda driver: driver.find_elements(By.CSS_SELECTOR, CURVES))
    browser.picture("trial")

    browser.open(f"{experiment}/runs/{parent.info.run_id}/artifacts/plots/refine_weight.png")
    plot = browser.wait(lambda driver: driver.find_elements(By.CSS_SELECTOR, PLOT))[0]
    browser.wait(lambda driver: width_of(driver, plot) > 100)
    browser.picture("plot")
