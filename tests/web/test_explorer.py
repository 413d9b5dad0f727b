"""The figures that compute in the page compute the library's numbers, for every reader, anywhere.

They are the sensitivity explorer, and the shaper, in which a reader hides a shape of their own.
The page under test is an embedding block alone, in a folder laid out like the built book, so that
nothing needs to be built first.
"""

import contextlib
import functools
import http.server
import importlib.util
import shutil
import threading
from pathlib import Path

import pytest
import torch

from locality import data
from locality.sensitivity import effective_radius
from locality.shapes import letter_w
from locality.stats import PCA, load_basis

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "book" / "_extra" / "explorer"
EMBEDS = ("explorer", "shaper")
PATIENCE = 120_000  # milliseconds; a busy machine may be slow
ASK = "([f, s, m]) => document.querySelector('figure.explorer').explorer"
spec = importlib.util.spec_from_file_location("maker", ROOT / "experiments/make_explorer_data.py")
maker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(maker)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(FILES, folder / "explorer")
    (folder / "book").mkdir()
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>'
    head += '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    for name in EMBEDS:
        embed = (ROOT / "book" / "_embed" / f"{name}.html").read_text(encoding="utf-8")
        (folder / "book" / f"{name}.html").write_text(f"{head}<body>{embed}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def own_server(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.fixture(scope="module")
def visit(browser, site, own_server):
    """Open the page; afterwards nothing may have gone wrong on it, unless `faults` says so."""

    @contextlib.contextmanager
    def visiting(origin="file", *, name="explorer", faults=False, block="", **options):
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        wrong = []
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        own = (own_server, site.as_uri(), "data:")

        def route(handler, request):
            if not request.url.startswith(own):
                wrong.append(f"asked for {request.url}")
            if not request.url.startswith(own) or (block and block in request.url):
                handler.abort()
            else:
                handler.continue_()

        page.route("**/*", route)
        start = own_server if origin == "http" else site.as_uri() + "/"
        page.goto(f"{start}book/{name}.html")
        if not faults and options.get("java_script_enabled", True):
            page.wait_for_selector(f"figure.{name}.is-live")
            page.wait_for_selector(".explorer-readout[aria-busy=false]")
        yield page
        context.close()
        assert faults or wrong == []

    return visiting


@pytest.fixture(scope="module")
def page(visit):
    with visit() as opened:
        yield opened


def shipped(file: str) -> PCA:
    return maker.decode((FILES / f"{file}.js").read_text(encoding="utf-8"))


def said(page, what: str) -> str:
    page.wait_for_selector(".explorer-readout[aria-busy=false]")
    return page.locator(f"[data-say={what}]").inner_text()


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", maker.SETS)
@pytest.mark.parametrize("sigma", [30.0, 1.0, 0.05])
def test_the_page_computes_the_rows(page, file, sigma):
    """The same formula over the same rounded eigenvectors, there and here."""
    pca = shipped(file)
    _, height, width = pca.shape
    for m in (0, 15 * width + 11, pca.mean.numel() - 7):
        row = maker.page_matrix(pca, sigma)[m]
        computed = torch.tensor(page.evaluate(f"{ASK}.row(f, s, m)", [file, sigma, m]))
        assert (computed - row).abs().max() < 1e-4 * row.abs().max()
        seen = page.evaluate(f"{ASK}.measure(f, s, m)", [file, sigma, m])
        field, (y, x) = row.abs().view(height, width), divmod(m, width)
        distance2 = (torch.arange(height)[:, None] - y) ** 2 + (torch.arange(width) - x) ** 2
        near = field.square()[distance2 <= 9].sum() / field.square().sum()
        mirror = field[y, width - 1 - x] / field.max()
        assert seen["near"] == pytest.approx(near.item(), rel=1e-3)
        assert seen["mirror"] == pytest.approx(mirror.item(), rel=1e-2, abs=1e-5)


@functools.cache
def complete(file: str) -> PCA:
    source, options, *_ = maker.SETS[file]
    if not data.available(source):
        pytest.skip(f"the images of {source} are not on this machine")
    return PCA.fit(data.load(source, **options))


@pytest.mark.parametrize("file", maker.SETS)
def test_the_page_computes_the_librarys_rows(page, file):
    """From the complete statistics, at the pixels a reader sees first: what rounding leaves."""
    pca, (y, x) = complete(file), maker.SETS[file][3]
    m = y * pca.shape[2] + x
    for sigma, tolerance in ((30.0, 0.015), (3.0, 0.015), (1.0, 0.02), (0.3, 0.04), (0.01, 0.06)):
        computed = torch.tensor(page.evaluate(f"{ASK}.row(f, s, m)", [file, sigma, m]))
        row = pca.wiener_rows(sigma, [m])[0]
        assert (computed - row).abs().max() < tolerance * row.abs().max(), f"at sigma {sigma}"


@pytest.mark.parametrize("file", maker.SETS)
def test_rounding_moves_no_row_by_much(file):
    """Against the complete statistics: the error of a row's entries over the row's largest.

    Of pixels that hardly vary (in Fashion-MNIST's corners), whose rows are almost nothing, only
    their order of magnitude is right. At low noise the missing eigenvectors of the other sets are
    missed: they move how bright a pixel's neighbours are beside it.
    """
    exact, rounded = complete(file), shipped(file)
    assert torch.allclose(exact.eigenvalues, rounded.eigenvalues, rtol=1e-3, atol=1e-4)
    lively = exact.covariance().diagonal() > 0.1**2
    for sigma in maker.LEVELS:
        errors = maker.row_errors(exact, rounded, sigma)[lively]
        assert errors.median() < (0.015 if sigma >= 1 else 0.04 if sigma >= 0.3 else 0.12), sigma
        assert errors.quantile(0.99) < (0.1 if sigma >= 0.3 else 0.18), sigma


@pytest.mark.parametrize("file", maker.SETS)
def test_the_radius_is_that_of_the_complete_statistics(page, file):
    exact = complete(file)
    _, height, width = exact.shape
    for sigma in (70.0, 10.0, 2.0, 0.5, 0.1, 0.02):
        for y, x in ((15, 11), (9, 20), (22, 14)):
            row = exact.wiener_rows(sigma, [y * width + x]).view(height, width)
            seen = page.evaluate(f"{ASK}.measure(f, s, m)", [file, sigma, y * width + x])
            assert seen["radius"] == pytest.approx(effective_radius(row, (y, x)).item(), abs=0.3)


def test_leaving_out_a_common_share_changes_no_row():
    pca = PCA.fit(torch.rand(50, 1, 16, 16, generator=torch.manual_seed(0)) * 2 - 1)
    for sigma in (3.0, 0.3, 0.03):
        assert torch.allclose(maker.page_matrix(pca, sigma), pca.wiener_matrix(sigma), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "basis"), [("celeba", "celeba-gray"), ("cifar10", "cifar10-gray")]
)
def test_the_explorer_and_the_shipped_bases_come_from_the_same_images(file, basis):
    basis = load_basis(basis)
    assert torch.allclose(shipped(file).eigenvalues, basis.eigenvalues, rtol=1e-3, atol=1e-4)
    assert maker.row_errors(basis, shipped(file), 10.0).median() < 0.02


def test_a_scale_survives_its_encoding():
    """Rounding to 4 bits keeps every entry within half a step of its block's scales."""
    vectors = torch.linalg.qr(torch.randn(64, 64, generator=torch.manual_seed(0)))[0]
    pca = PCA(torch.zeros(64), torch.linspace(2, 1, 64), vectors, (1, 8, 8), 2)
    again = maker.decode(maker.encode(pca, 64, pixel=(0, 0), about=""))
    assert torch.equal(again.eigenvalues, pca.eigenvalues)
    assert (again.eigenvectors - vectors).abs().max() < 0.01 * vectors.abs().max()


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FILES.glob("*.js")) < 2.6e6


def test_a_row_takes_less_than_ten_milliseconds(page):
    """The fastest of many, so that a busy machine does not count."""
    fastest = page.evaluate(
        """async () => {
            const { row } = document.querySelector("figure.explorer").explorer;
            let best = Infinity;
            for (let m = 0; m < 40; m++) {
                const start = performance.now();
                await row("celeba", 1, m);
                best = Math.min(best, performance.now() - start);
            }
            return best;
        }"""
    )
    assert fastest < 10


# --- the reader -----------------------------------------------------------------------------------


def test_it_works_from_a_server_and_from_a_file(visit, origin):
    with visit(origin) as page:
        first = said(page, "radius")
        for option in page.locator("select option").all():
            label = option.inner_text()
            page.get_by_label("Data").select_option(label)
            what = maker.SETS[option.get_attribute("value")][4]
            page.get_by_text(what, exact=False).first.wait_for()
        assert said(page, "radius") != first


def test_every_set_on_offer_has_its_file(page):
    offered = page.locator("select option").evaluate_all("(all) => all.map((o) => o.value)")
    assert sorted(offered) == sorted(maker.SETS)
    assert all((FILES / f"{file}.js").is_file() for file in offered)


def test_arrow_keys_move_the_pixel(visit):
    with visit() as page:
        y, x = maker.SETS["celeba"][3]
        assert said(page, "pixel") == f"{y}, {x}"
        before = said(page, "mirror")
        page.get_by_role("application").focus()
        for key, place in (
            ("ArrowUp", (y - 1, x)),
            ("ArrowLeft", (y - 1, x - 1)),
            ("ArrowDown", (y, x - 1)),
            ("ArrowRight", (y, x)),
        ):
            page.keyboard.press(key)
            assert said(page, "pixel") == f"{place[0]}, {place[1]}"
        assert said(page, "mirror") == before
        for _ in range(40):
            page.keyboard.press("ArrowRight")
        assert said(page, "pixel") == f"{y}, 31"  # it stops at the border
        assert said(page, "mirror") != before


def test_the_slider_lowers_the_noise_and_the_radius(visit):
    with visit() as page:
        slider = page.get_by_label("Noise level")
        slider.focus()
        page.keyboard.press("Home")
        assert said(page, "sigma") == "100"
        assert slider.get_attribute("aria-valuetext") == "100"
        far = float(said(page, "radius").split()[0])
        page.keyboard.press("End")
        assert said(page, "sigma") == "0.010"
        assert float(said(page, "radius").split()[0]) < 0.3 < 5 < far


def test_the_pointer_shows_and_a_click_keeps(visit):
    with visit() as page:
        kept = said(page, "pixel")
        box = page.locator(".explorer-stage").last.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 20.5 / 32, box["y"] + box["height"] * 4.5 / 32)
        assert said(page, "pixel") == "4, 20"
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 40)
        assert said(page, "pixel") == kept
        page.mouse.click(box["x"] + box["width"] * 20.5 / 32, box["y"] + box["height"] * 4.5 / 32)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 40)
        assert said(page, "pixel") == "4, 20"


def test_a_tap_moves_the_pixel(visit):
    with visit(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}) as page:
        box = page.locator(".explorer-stage").first.bounding_box()
        x, y = box["x"] + box["width"] * 9.5 / 32, box["y"] + box["height"] * 25.5 / 32
        page.touchscreen.tap(x, y)
        assert said(page, "pixel") == "25, 9"


def test_the_field_is_drawn_brightest_at_its_pixel(visit):
    with visit() as page:
        page.get_by_label("Noise level").press("End")
        said(page, "sigma")
        place = page.locator("canvas").last.evaluate(
            """(canvas) => {
                const { data, width } = canvas.getContext("2d").getImageData(0, 0, 32, 32);
                let best = 0;
                for (let n = 0; n < 1024; n++) if (data[4 * n + 1] > data[4 * best + 1]) best = n;
                return [Math.floor(best / width), best % width];
            }"""
        )
        assert tuple(place) == maker.SETS["celeba"][3]


def test_a_screen_reader_hears_the_readout(page):
    readout = page.locator(".explorer-readout")
    assert readout.get_attribute("aria-live") == "polite"
    terms = readout.locator("dt").all_inner_texts()
    assert terms == [
        "Row, column",
        "Noise level",
        "Effective radius",
        "Energy within 3 px",
        "At the mirror pixel",
    ]
    assert page.get_by_role("application").get_attribute("aria-label")
    assert page.locator("figure.explorer figcaption").is_visible()


def test_focus_is_visible_on_every_control(visit):
    with visit() as page:
        names = []
        for _ in range(3):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                """() => [document.activeElement.localName,
                          getComputedStyle(document.activeElement).outlineStyle]"""
            )
            names.append(focused[0])
            assert focused[1] != "none"
        assert names == ["select", "div", "input"]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_overflows(visit, width):
    with visit(viewport={"width": width, "height": 844}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_javascript_the_picture_stands_there(visit, origin):
    with visit(origin, java_script_enabled=False) as page:
        picture = page.locator("figure.explorer img")
        assert picture.is_visible()
        assert len(picture.get_attribute("alt")) > 100
        assert page.locator("figure.explorer figcaption").is_visible()


def test_without_its_data_the_picture_stays(visit, origin):
    with visit(origin, faults=True, block="celeba.js") as page:
        page.wait_for_function(
            """() => document.querySelector("figure.explorer").explorer.ready
                   .then(() => false, (error) => error.message.includes("celeba.js"))"""
        )
        assert page.locator("figure.explorer img").is_visible()
        assert page.locator(".explorer-live").count() == 0


# --- the reader's own shape -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(visit):
    with visit(name="shaper") as opened:
        yield opened


def center(page, place: tuple[int, int], stage: int = 0) -> tuple[float, float]:
    """Where pixel (row, column) of a picture is on the page."""
    box = page.locator(".explorer-stage").nth(stage).bounding_box()
    y, x = ((at + 0.5) / 28 for at in place)
    return box["x"] + box["width"] * x, box["y"] + box["height"] * y


@pytest.mark.parametrize("sigma", [12.0, 1.24, 0.342])
def test_the_page_computes_rows_with_a_shape(drawn, sigma):
    """To the exact ones, as near as the rounded eigenvectors allow; with a W and a bar."""
    pca = complete("fashion-mnist")
    bar = torch.zeros(28, 28)
    bar[20, 6:23] = 1
    for shape in (letter_w(28, 28), bar):
        flat = shape.flatten().nonzero()[:, 0].tolist()
        for m in (flat[0], flat[-1], 14 * 28 + 14):
            for variance in (0.0, 0.25):
                ask = "(a) => document.querySelector('figure.shaper').shaper.row(...a)"
                row = torch.tensor(drawn.evaluate(ask, [sigma, m, flat, variance]))
                exact = pca.wiener_rows_with(sigma, [m], shape.flatten(), variance=variance)[0]
                assert (row - exact).abs().max() < 0.03 * exact.abs().max(), (sigma, m, variance)


def test_the_shaper_starts_with_the_w_of_chapter_8(drawn):
    marked = drawn.locator("figure.shaper").get_attribute("data-shape").split()
    assert [int(n) for n in marked] == letter_w(28, 28).flatten().nonzero()[:, 0].tolist()
    assert said(drawn, "inside") == "yes"
    assert float(said(drawn, "after")) > 3 * float(said(drawn, "before"))


def test_what_is_drawn_is_seen(visit):
    with visit(name="shaper") as page:
        page.get_by_role("button", name="Clear").click()
        assert said(page, "after") == "no shape" and said(page, "inside") == "no"
        page.mouse.move(*center(page, (24, 6)))
        page.mouse.down()
        for column in range(6, 23):
            page.mouse.move(*center(page, (24, column)))
        page.mouse.up()
        page.get_by_role("checkbox", name="Draw").uncheck()
        page.mouse.click(*center(page, (24, 10)))
        assert said(page, "pixel") == "24, 10" and said(page, "inside") == "yes"
        with_it = float(said(page, "after"))
        assert with_it > 2 * abs(float(said(page, "before")))
        page.get_by_label("amplitude").press("Home")
        assert said(page, "after") == said(page, "before"), "no amplitude, no change"
        page.get_by_role("button", name="Letter W").click()
        assert said(page, "inside") == "no"


def test_keys_draw_too(visit):
    with visit(name="shaper") as page:
        page.get_by_role("application").focus()
        assert said(page, "pixel") == "7, 6"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert said(page, "pixel") == "7, 8" and said(page, "inside") == "no"
        page.keyboard.press(" ")
        assert said(page, "inside") == "yes"
        page.keyboard.press(" ")
        assert said(page, "inside") == "no"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_shaper_overflows_nowhere(visit, width):
    with visit(name="shaper", viewport={"width": width, "height": 844}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_shaper_has_a_picture_without_javascript(visit, origin):
    with visit(origin, name="shaper", java_script_enabled=False) as page:
        picture = page.locator("figure.shaper img")
        assert picture.is_visible() and len(picture.get_attribute("alt")) > 100
        assert page.locator("figure.shaper figcaption").is_visible()


def test_the_shapers_picture_stays_without_data(visit, origin):
    with visit(origin, name="shaper", faults=True, block="fashion-mnist.js") as page:
        page.wait_for_timeout(1000)
        assert page.locator("figure.shaper img").is_visible()
        assert page.locator(".explorer-live").count() == 0
