"""scripts/draw.py's page in a real browser, without a window: `nox -s browser` runs these tests."""

from __future__ import annotations

import re
import shutil

import pytest
from script_runner import SCRIPTS, drawing_page

import nnxp

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests"),
]

# Recorded strokes: points (x, y) of a pad of 280 x 280 pixels.
STROKES = {
    "1": [[(140, 40), (138, 90), (136, 150), (134, 200), (132, 245)]],
    "0": [[(140, 40), (95, 70), (75, 140), (95, 210), (140, 240), (185, 210), (205, 140),
           (185, 70), (140, 40)]],
    "7": [[(70, 50), (140, 48), (205, 46), (180, 110), (150, 180), (130, 245)],
          [(105, 150), (200, 140)]],
}  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # else playwright's own


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "lenet.safetensors"
    train, _ = nnxp.data.load_digits(images=True)
    network = nnxp.lenet(10, image=(1, 8, 8), padding=2, batch_norm=True, rng=0)
    network = nnxp.Sequential([nnxp.RandomShift(1, rng=1), *network])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
    trainer.fit(train, epochs=10, batch_size=50, rng=0)
    network.save(path)
    with drawing_page(path) as (port, _):
        yield port


@pytest.fixture(params=[(390, "light", True), (1280, "dark", False)], ids=["phone", "desktop"])
def page(request, browser, port):
    """The page; it must not print an error, nor ask for anything elsewhere."""
    width, scheme, touch = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=touch
    )
    own, page, problems, asked = f"http://127.0.0.1:{port}/", context.new_page(), [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(own)
    page.wait_for_selector("#probabilities li")
    yield page
    context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith((own, "data:"))] == []


def draw(page, strokes):
    box = page.locator("#pad").bounding_box()
    scale = box["width"] / 280
    for stroke in strokes:
        points = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=4)
        page.mouse.up()
    settle(page)


def settle(page):
    page.wait_for_selector("#results[aria-busy=false]")


def shares(page):
    settle(page)
    texts = page.locator("#probabilities .share").all_text_contents()
    return [float(text.removesuffix("\u00a0%")) for text in texts if text]


def drawn_pixels(page, selector):
    """Return how many colours a canvas shows."""
    return page.eval_on_selector(
        selector,
        """canvas => new Set(new Uint32Array(canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size""",
    )


@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_recognized_and_explained(page, digit):
    draw(page, STROKES[digit])
    page.wait_for_selector("#answer:has-text('It is')")
    assert re.match(rf"It is a {digit}: ", page.text_content("#answer"))
    assert page.text_content("#probabilities .best .name") == digit
    assert sum(shares(page)) == pytest.approx(100, abs=0.5)  # ten shares rounded to 0.1
    for selector in ("#field", "#gradient"):
        assert drawn_pixels(page, selector) > 5
    layers = page.locator("#layers li")
    assert layers.count() == 14
    assert layers.nth(0).locator("h3").text_content() == "RandomShift(1)"
    assert "the same numbers" in layers.nth(0).text_content()
    assert "20 maps of 8 × 8 pixels" in layers.nth(1).text_content()
    assert drawn_pixels(page, "#layers li:nth-child(2) canvas") > 20
    # Nothing is cut off at the side, nor within a row; the widest share is that of certainty.
    page.evaluate("latest.probabilities.fill(1); show()")
    cut = page.evaluate("""() => {
        const width = part => part.getBoundingClientRect().width;
        const all = new Range();
        const text = x => { all.selectNodeContents(x); return width(all); };
        const spans = [...document.querySelectorAll("#probabilities span")];
        const page = document.documentElement;
        return [...spans.filter(x => text(x) > width(x) + 0.1).map(x => x.textContent),
                page.scrollWidth - page.clientWidth];
    }""")
    assert cut == [0]


def test_the_answer_changes_while_one_draws(page):
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    settle(page)
    page.wait_for_selector("#layers li")
    seen = [shares(page)]
    for x, y in [(200, 40), (120, 230)]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=5)
        seen.append(shares(page))
    assert seen[0] != seen[1] != seen[2]  # before the pen is lifted
    page.mouse.up()


def test_undo_and_clear(page):
    undo, clear = page.get_by_role("button", name="Undo"), page.get_by_role("button", name="Clear")
    assert undo.is_disabled()
    assert clear.is_disabled()
    draw(page, STROKES["7"][:1])
    first = shares(page)
    draw(page, STROKES["7"][1:])
    assert shares(page) != first
    undo.click()
    assert shares(page) == first
    draw(page, STROKES["7"][1:])
    clear.focus()
    page.keyboard.press("Enter")
    assert shares(page) == []
    assert page.locator("#layers li").count() == 0
    assert page.text_content("#answer") == "Draw a digit in the field"
    assert drawn_pixels(page, "#pad") == 1
    draw(page, STROKES["1"])
    page.keyboard.press("Escape")
    assert shares(page) == []


def test_a_tap_is_a_dot_and_a_second_finger_does_not_draw(page):
    pad = page.locator("#pad")
    box = pad.bounding_box()
    page.mouse.click(box["x"] + 100, box["y"] + 100)
    page.wait_for_selector("#layers li")
    assert drawn_pixels(page, "#pad") > 1
    before = shares(page)
    pad.evaluate("""pad => {
        pad.setPointerCapture = () => {};
        const send = (name, pointerId, clientX, clientY) => pad.dispatchEvent(new PointerEvent(
            name, {pointerType: "touch", bubbles: true, button: 0, pointerId, clientX, clientY}));
        send("pointerdown", 7, 120, 300);
        send("pointerdown", 8, 10, 10);
        send("pointermove", 8, 300, 10);
    }""")
    assert page.evaluate("strokes.length") == 2
    assert page.evaluate("strokes[1].length") == 1
    pad.evaluate("""pad => pad.dispatchEvent(new PointerEvent("pointerup", {pointerId: 7}))""")
    assert before != shares(page)


def test_a_finger_draws(page):
    box = page.locator("#pad").bounding_box()
    session = page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + 40

    def touch(kind, *points):
        places = [{"x": x, "y": y + down} for down in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    top = page.evaluate("scrollY")
    touch("touchStart", 0)
    for down in range(10, 200, 10):
        touch("touchMove", down)
    touch("touchEnd")
    page.wait_for_selector("#answer:has-text('It is a 1')")
    assert page.evaluate("scrollY") == top


def test_screen_readers_find_names_and_the_answer(page):
    draw(page, STROKES["0"])
    settle(page)
    nameless = page.evaluate("""() => [...document.querySelectorAll("canvas, button")]
        .filter(x => !(x.getAttribute("aria-label") || x.textContent.trim())).length""")
    assert nameless == 0
    assert page.get_by_role("status").text_content().startswith("It is a 0")
    assert page.locator("canvas[role=img]").count() == page.locator("canvas").count()


def test_a_server_that_has_gone_is_said(browser, tmp_path):
    network = nnxp.mlp([64, 10], rng=0)
    train, _ = nnxp.data.load_digits()
    nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD()).fit(
        train, epochs=1, batch_size=50, rng=0
    )
    network.save(tmp_path / "n.safetensors")
    page = browser.new_page()
    with drawing_page(tmp_path / "n.safetensors") as (port, _):
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#probabilities li")
    draw(page, STROKES["1"])
    assert page.text_content("#answer") == "draw.py does not answer; start it again, then draw"
    page.close()
