"""Open every page of the built book in a headless Chromium and measure it.

The book is looked for in _build/html (`make book` builds it) or where LOCALITY_HTML says. Every
page is opened once from a local web server and once as a file; requests to any other server are
recorded and refused. The tests read the measurements.
"""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("LOCALITY_HTML", ROOT / "_build" / "html")).resolve()
MEASURE = (Path(__file__).parent / "measure.js").read_text()
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
BROWSERS += ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"]
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-quic"]
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
PATIENCE = 120_000  # milliseconds; a busy machine may be slow


def pages() -> list[str]:
    """Return the pages of the book; the others are a redirect and the theme's search."""
    return sorted(path.relative_to(HTML).as_posix() for path in HTML.glob("book/**/*.html"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `name` on every page, and one that asks for `origin` on both."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", pages() or [None], ids=str)
    if "origin" in metafunc.fixturenames:
        metafunc.parametrize("origin", ["http", "file"])


@dataclass
class Visit:
    """What one page did while it was open, and what was measured on it."""

    external: list[str] = field(default_factory=list)  # requests to another server
    missing: list[str] = field(default_factory=list)  # own files that did not come
    errors: list[str] = field(default_factory=list)  # console errors and uncaught exceptions
    measured: dict = field(default_factory=dict)


@pytest.fixture(scope="session")
def html() -> Path:
    """Return the folder of the built book."""
    if not pages():
        pytest.fail(f"no pages in {HTML}: run `make book` first")
    return HTML


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A file server that logs nothing."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def server(html: Path) -> Iterator[str]:
    """Serve the book on this machine and yield its address."""
    handler = functools.partial(QuietHandler, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Start Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def address(html: Path, server: str) -> Callable[[str, str], str]:
    """Return a function that gives the address of a page from a server or as a file."""
    return lambda name, origin: server + name if origin == "http" else (html / name).as_uri()


def watch(page, visit: Visit, server: str) -> None:
    """Record into `visit` what `page` asks for and complains about."""

    def route(handler, request) -> None:
        if request.url.startswith((server, "file:", "data:", "blob:")):
            handler.continue_()
        else:
            visit.external.append(request.url)
            handler.abort()

    page.route("**/*", route)
    page.on("requestfailed", lambda request: visit.missing.append(request.url))
    page.on("response", lambda r: visit.missing.append(r.url) if r.status >= 400 else None)
    page.on("console", lambda m: visit.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))


def settle(page) -> None:
    """Wait until formulas and widgets are drawn; a widget that is never drawn is measured later.

    Not for Playwright's "networkidle", which on a busy machine may never be reported.
    """
    page.evaluate(MEASURE)
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate("(limit) => window.measure.widgetsDrawn(limit)", 15_000)
    page.evaluate("async () => { await document.fonts.ready; }")
    page.wait_for_timeout(500)  # for requests that come late


@pytest.fixture(scope="session")
def settled() -> Callable[[object], None]:
    """Return `settle`."""
    return settle


@pytest.fixture(scope="session")
def visit(browser, server: str, address) -> Callable[[str, str], Visit]:
    """Return a function that opens a page and gives its measurements; each is made once."""

    @functools.cache
    def visit_once(name: str, origin: str) -> Visit:
        result = Visit()
        context = browser.new_context(viewport=DESKTOP, color_scheme="light")
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        watch(page, result, server)
        page.goto(address(name, origin))
        settle(page)
        result.measured = page.evaluate("() => window.measure.structure()")
        if origin == "http":
            measure_looks(page, result.measured)
        context.close()
        return result

    return visit_once


def measure_looks(page, measured: dict) -> None:
    """Measure what is the same wherever the page came from: focus, contrast, overflow."""
    measured["stops"] = tab_through(page)
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        page.wait_for_timeout(300)  # the theme fades
        measured[f"contrast-{theme}"] = page.evaluate("() => window.measure.contrast()")
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(300)
    measured["overflow"] = page.evaluate("() => window.measure.overflow()")


def tab_through(page) -> list[dict]:
    """Press Tab from the top until focus leaves the page; what it stopped at, in that order."""
    page.evaluate("() => window.measure.startFocus()")
    stops = []
    for _ in range(400):
        page.keyboard.press("Tab")
        stop = page.evaluate("() => window.measure.focus()")
        if stop is None:
            break
        stops.append(stop)
    return stops
