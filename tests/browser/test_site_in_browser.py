"""The site that `make site` wrote to build/site, page by page in Chromium."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

pytestmark = pytest.mark.browser
SITE = Path(__file__).resolve().parents[2] / "build" / "site"
NOTEBOOKS = ("quick/notebooks/02_main_results", "paper/notebooks/02_main_results", "quick/notebooks/09_claims")
LOOK = """
const text = element => (element.getAttribute('alt') || '').trim();
return {
    links: Array.from(document.querySelectorAll('a[href]'), a => a.href),
    ids: Array.from(document.querySelectorAll('[id]'), e => e.id),
    images: Array.from(document.images, i => [i.src.slice(-80), text(i), i.complete && i.naturalWidth]),
    width: document.documentElement.scrollWidth - document.documentElement.clientWidth,
};
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    """The site from a web server of its own, as its readers get it."""
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site: run make site", pytrace=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def pages(address, browser) -> dict[str, dict]:
    """What Chromium finds on each page, by the page's path, and what it complains of."""
    found = {}
    browser.get("about:blank")  # a page of JupyterLab goes on asking for its server, which has ended
    browser.get_log("browser")
    for path in sorted(SITE.rglob("*.html")):
        if "_static" not in path.parts:
            name = path.relative_to(SITE).as_posix()
            browser.get(address + name)
            found[name] = browser.execute_script(LOOK) | {"complaints": browser.get_log("browser")}
    return found


def test_every_page_opens_without_complaints(pages):
    assert {name: page["complaints"] for name, page in pages.items() if page["complaints"]} == {}
    for name in ("docs/index.html", "README.html", "docs/api.html", *(f"figures/{name}.html" for name in NOTEBOOKS)):
        assert name in pages


def test_no_link_into_the_site_is_dead(pages, address):
    dead, followed = [], 0
    for name, page in pages.items():
        for link in page["links"]:
            target, place = urldefrag(link)
            if not target.startswith(address):
                assert urlsplit(link).scheme in ("https", "http", "mailto"), f"{link} in {name}"
                continue
            followed += 1
            path = unquote(urlsplit(target).path).lstrip("/") or "index.html"
            there = (SITE / path).is_file() and (not place or path not in pages or unquote(place) in pages[path]["ids"])
            dead += [] if there else [f"{link} in {name}"]
    assert not dead and followed > 1000


def test_every_image_is_there_and_has_a_text_alternative(pages):
    images = [(name, *image) for name, page in pages.items() for image in page["images"]]
    for name, source, alternative, width in images:
        assert width > 0, f"{source} in {name} is not there"
        # without one, Sphinx writes the file's name
        file = alternative.endswith((".png", ".svg"))
        assert len(alternative) > 10 and not file, f"{source} in {name}: {alternative}"
    assert len(images) >= 10
    assert all(pages[f"figures/{name}.html"]["images"] for name in NOTEBOOKS)


def test_no_page_is_wider_than_the_window(pages):
    assert {name: page["width"] for name, page in pages.items() if page["width"] > 0} == {}
