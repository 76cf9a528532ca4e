"""The site: built without a warning, with every public name, and read in a real browser."""

from __future__ import annotations

import functools
import html
import http.server
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import nnxp

DOCS = Path(__file__).parent.parent / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # else playwright's own
WIDTHS = {"phone": 360, "desktop": 1280}
# Options in the text, such as --model, and figures in tables, that are on more than one line.
BROKEN = """
    [...document.querySelectorAll("article p code .pre, article li code .pre, article td p")]
        .filter(x => /^-+[\\w-]+$|^[\\d.]+ ± [\\d.]+ ?%?$/.test(x.textContent))
        .filter(x => {
            const range = document.createRange();
            range.selectNodeContents(x);
            return new Set([...range.getClientRects()].map(box => box.top)).size > 1;
        })
        .map(x => x.textContent)
"""

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not (DOCS / "conf.py").exists(), reason="docs: not beside the tests"),
]
for package in ("sphinx", "myst_parser", "numpydoc", "furo", "sphinx_copybutton", "sklearn"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = ("-b", "html", "-W", "--keep-going", "-q")
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", *build, DOCS, folder / "html"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "html"


def public_names():
    """Return the full names of what users call: of nnxp, and of the modules among its names."""
    names = set()
    for name in nnxp.__all__:
        x = getattr(nnxp, name)
        if not inspect.ismodule(x):
            names.add(f"nnxp.{name}")
            continue
        inner = getattr(x, "__all__", None) or [n for n in vars(x) if n in dir(x)]
        own = (n for n in inner if not n.startswith("_") and callable(getattr(x, n)))
        names.update(f"nnxp.{name}.{n}" for n in own if _is_of(getattr(x, n), x.__name__))
    return names


def _is_of(x, module):
    return getattr(x, "__module__", "").startswith(module)


def test_every_public_name_is_in_the_reference_with_its_source(site):
    inventory = importlib.import_module("sphinx.util.inventory").InventoryFile
    with (site / "objects.inv").open("rb") as file:
        objects = inventory.load(file, "", lambda base, uri: uri)
    places = {
        name: item.uri
        for kind in ("py:class", "py:function", "py:exception")
        for name, item in objects.get(kind, {}).items()
    }
    assert sorted(public_names() - set(places)) == []
    for page in sorted({uri.partition("#")[0] for uri in places.values()}):
        assert "viewcode-link" in (site / page).read_text(encoding="utf-8"), page


def test_signatures_show_parameters_and_defaults_by_their_names(site):
    signatures = "".join(
        found
        for page in sorted((site / "reference").glob("*.html"))
        for found in re.findall(r'<dt class="sig.*?</dt>', page.read_text(encoding="utf-8"), re.S)
    )
    shown = html.unescape(re.sub(r"<.*?>", "", signatures))
    assert "initializer=he_normal, dtype='float32'" in shown
    assert "ranks=OneRank()" in shown
    assert re.findall(r"\*\*settings|[(, ]_\w+|<.*?>", shown) == []


def test_a_page_without_a_place_in_the_site_is_refused(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "gallery"))
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "dummy", "-W", "-q", tmp_path / "docs", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "gallery" in result.stderr


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def context(request, browser, address):
    """A browser whose pages must not print an error, nor ask for anything elsewhere."""
    context, problems = browser.new_context(color_scheme=request.param), []
    context.on("console", lambda x: problems.append(x.text) if x.type == "error" else None)
    context.on("response", lambda x: problems.append(x.url) if x.status >= 400 else None)
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("request", lambda x: x.url.startswith((address, "data:")) or problems.append(x.url))
    yield context
    context.close()
    assert problems == []


def luminance(colour):
    """Return how bright ``rgb(r, g, b)`` is, from 0 to 1 (WCAG 2.2, relative luminance)."""
    parts = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_screen_and_can_be_read(site, address, context, width):
    page = context.new_page()
    page.set_viewport_size({"width": WIDTHS[width], "height": 800})
    names = [
        path.relative_to(DOCS).with_suffix(".html").as_posix()
        for path in sorted(DOCS.rglob("*.md"))
        if "_build" not in path.parts
    ]
    assert len(names) > 50
    for name in names:
        page.goto(f"{address}/{name}")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, name
        assert page.locator("h1").first.is_visible(), name
        broken = page.evaluate(
            "[...document.images].filter(x => x.complete && !x.naturalWidth).map(x => x.src)"
        )
        assert broken == [], name
        if width == "phone":
            assert page.evaluate(BROKEN) == [], name
    page.goto(f"{address}/start.html")
    colours = page.eval_on_selector(
        "article p",
        "p => [getComputedStyle(p).color, getComputedStyle(document.body).backgroundColor]",
    )
    bright, dark = sorted(map(luminance, colours), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 7  # WCAG 2.2, criterion 1.4.6


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("Dropout", "reference/layers.html"), ("diverged", "errors.html"),
     ("imbalanced", "guides/imbalanced.html")],
)  # fmt: skip
def test_the_search_finds(address, context, words, wanted):
    page = context.new_page()
    page.goto(f"{address}/index.html")
    box = page.locator("input[name=q]").first
    box.fill(words)
    box.press("Enter")
    page.wait_for_selector("#search-results ul.search li a")
    links = page.locator("#search-results ul.search li a")
    found = [x.partition("#")[0] for x in links.evaluate_all("all => all.map(a => a.href)")]
    assert f"{address}/{wanted}" in [x.partition("?")[0] for x in found]


def test_links_and_code_can_be_followed_and_copied(address, context):
    page = context.new_page()
    page.goto(f"{address}/index.html")
    page.get_by_role("link", name="Getting started").last.click()
    page.wait_for_url("**/start.html")
    block = page.locator("div.highlight-sh").first
    copied = block.locator("button.copybtn")
    block.hover()
    assert copied.get_attribute("data-clipboard-target")
