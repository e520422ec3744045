"""Notebook 00 in a real JupyterLab, in a real Chromium: `make test-browser`."""

import inspect
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from rsstudy.engine import complete
from rsstudy.plan import PROFILES, Settings, plan

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "explorer"
LOOK = """
const [explorer] = arguments, place = e => JSON.stringify(e.getBoundingClientRect());
const name = e => `${e.tagName} ${e.className} ${(e.textContent || '').slice(0, 40)} ${place(e)}`;
const view = explorer.closest('.jp-WindowedPanel-outer').getBoundingClientRect();
const parts = Array.from(explorer.querySelectorAll('button, select, img, table, .text'));
const inside = r => r.left >= view.left && r.right <= view.right && r.top >= view.top - 1 && r.bottom <= view.bottom;
const scrolls = e => {
    const style = getComputedStyle(e), of = axis => ['auto', 'scroll'].includes(style[`overflow${axis}`]);
    return of('X') && e.scrollWidth > e.clientWidth || of('Y') && e.scrollHeight > e.clientHeight;
};
const around = [];
for (let e = explorer; !e.classList.contains('jp-WindowedPanel-outer'); e = e.parentElement) around.push(e);
return {
    parts: parts.length,
    outside: parts.filter(e => !inside(e.getBoundingClientRect())).map(name),
    scrolling: [...around, ...explorer.querySelectorAll('*')].filter(scrolls).map(name),
    page: document.documentElement.scrollWidth,
    view: [view.left, view.top, view.right, view.bottom],
};
"""
EXPLORER = "//div[contains(@class, 'rsslib-explorer')]"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a copy of the notebook and one finished run, which the notebook's parameters name."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "00_explore.ipynb", 4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\nresults = {str(folder / 'results')!r}"
    nbformat.write(notebook, folder / "notebooks" / "00_explore.ipynb")
    planned = plan(replace(PROFILES["smoke"], supernet_epochs=9), methods=["rss-short"])
    complete(planned, Settings(folder / "results", folder / "data", "cpu", progress=False))
    return folder


@pytest.fixture(scope="module")
def server(project) -> str:
    """The address of a JupyterLab with settings of its own, which asks no questions."""
    for name, settings in {
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}',
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # or cells out of sight would not be there
    }.items():
        path = project / "jupyter" / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    own |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(project / "jupyter" / value) for name, value in own.items()}
    options = [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--no-browser"]
    options += ["--ip=127.0.0.1", "--allow-root", f"--ServerApp.root_dir={project}"]
    with open(project / "jupyter.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log, cwd=project
        )
    address = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(600):
            try:
                opener.open(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (project / "jupyter.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def page(browser, server, project) -> "Page":
    """The notebook with all cells run."""
    browser.get(f"{server}/lab/tree/notebooks/00_explore.ipynb?token={TOKEN}")
    page = Page(browser, project / "failure.png")
    page.click("//div[contains(@class, 'jp-Notebook')]//h1")  # the status bar tells of the notebook that has the focus
    page.find("//*[@id='jp-main-statusbar']//span[contains(text(), '(ipykernel) | Idle')]")
    page.click("//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']")
    page.click("//li[@data-command='runmenu:run-all']")
    page.wait(lambda: page.drawn_layers() > 0)
    return page


class Page:
    """What the test does and sees in the browser."""

    def __init__(self, driver: Chrome, failure: Path):
        self.driver, self.failure = driver, failure

    def wait(self, condition, seconds: float = 60):
        """Until `condition()` holds, elements that are being replaced meanwhile notwithstanding."""
        try:
            return WebDriverWait(self.driver, seconds, 0.1, (Exception,)).until(lambda _: condition())
        except TimeoutException:
            self.driver.save_screenshot(self.failure)
            raise AssertionError(f"not within {seconds} s: {inspect.getsource(condition)}see {self.failure}") from None

    def find(self, path: str):
        return self.wait(lambda: self.driver.find_element(By.XPATH, path))

    def click(self, path: str) -> None:
        self.wait(lambda: self.driver.find_element(By.XPATH, path).click() is None)

    def press(self, label: str) -> None:
        """A button of the explorer by its text."""
        self.click(f"{EXPLORER}//button[normalize-space()='{label}' and contains(@class, 'widget-button')]")

    def toggle(self, group: str, label: str) -> None:
        """A button in the explorer's row of toggles that is labelled `group`."""
        row = f"{EXPLORER}//div[contains(@class, 'widget-toggle-buttons')][label[normalize-space()='{group}']]"
        self.click(f"{row}//button[normalize-space()='{label}']")

    def image(self, number: int) -> str:
        """The SVG that the explorer shows: 0 subnet A, 1 subnet B, 2 their place in the population."""
        return self.driver.execute_async_script(
            "const [path, number, done] = arguments;"
            "const all = document.evaluate(path, document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE);"
            "fetch(all.snapshotItem(number).src).then(r => r.text()).then(done, e => done(''));",
            f"{EXPLORER}//img", number,
        )  # fmt: skip

    def drawn_layers(self) -> int:
        return len(re.findall(r'id="layer \d+"', self.image(0)))

    def numbers(self) -> dict[str, list[str]]:
        """The table of A, B and their difference by the row's name."""
        rows = [row.text for row in self.driver.find_elements(By.XPATH, f"{EXPLORER}//table//tr")]
        matches = [re.fullmatch(r"(.*?) (\S+) (\S+) (\S+)", row) for row in rows]
        return {match[1]: list(match.groups()[1:]) for match in matches if match}

    def status(self) -> str:
        return self.driver.find_element(By.XPATH, EXPLORER).text


def test_evaluates_and_compares_two_subnets(page):
    page.press("middle")
    page.wait(lambda: page.numbers()["MFLOPs"][0] == "7.20")
    assert "star A" not in page.image(2) and 'id="population"' in page.image(2)
    page.press("Evaluate A")
    page.wait(lambda: 'id="star A"' in page.image(2))
    page.wait(lambda: re.search(r"A: [\d.]+ % of [\d,]+ test images", page.status()))
    page.toggle("Edit", "B")
    before = page.image(1)
    page.press("random")
    page.wait(lambda: page.image(1) != before)
    page.press("Evaluate B")
    page.wait(lambda: 'id="star B"' in page.image(2) and 'id="star A"' in page.image(2))
    page.wait(lambda: re.search(r"B: [\d.]+ % of [\d,]+ test images", page.status()))
    a, b, _ = page.numbers()["accuracy (%)"]
    assert f"B: {b} %" in page.status() and 0 < float(a) <= 100


def test_all_is_in_one_view_beside_the_file_browser(page):
    """In a window of 1280 x 1024 pixels, and nothing in the explorer or around it has a scrollbar of its own."""
    assert page.find("//div[@id='filebrowser']").is_displayed()
    for preset in ("largest", "random"):  # the largest has the longest lines in the table
        for subnet in "AB":
            page.toggle("Edit", subnet)
            page.press(preset)
            place, whether = "AB".index(subnet), preset == "largest"
            page.wait(lambda at=place, so=whether: (page.numbers()["MFLOPs"][at] == "15.31") == so)
        explorer = page.find(EXPLORER)
        page.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", explorer)
        found = page.driver.execute_script(LOOK, explorer)
        assert found["parts"] > 80 and found["outside"] == [] and found["scrolling"] == [], found
        assert found["page"] <= page.driver.execute_script("return window.innerWidth")
    (ROOT / "build").mkdir(exist_ok=True)
    assert page.driver.save_screenshot(ROOT / "build" / "explore.png")  # to be copied to figures/, if it is nicer
