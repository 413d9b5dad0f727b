"""Every page works offline, without an error, for every reader, from a server and from a file."""

import itertools

import pytest

DESKTOP = {"width": 1280, "height": 900}
PATIENCE = 120_000  # milliseconds; a busy machine may be slow


def test_no_request_leaves_the_book(visit, name, origin):
    assert visit(name, origin).external == []


def test_no_file_is_missing(visit, name, origin):
    assert visit(name, origin).missing == []
    assert visit(name, origin).measured["broken"] == []


def test_no_error_in_the_console(visit, name, origin):
    assert visit(name, origin).errors == []


def test_formulas_are_drawn(visit, name, origin):
    measured = visit(name, origin).measured
    assert measured["undrawn"] == []
    assert measured["wrong"] == []


def test_no_widget_is_stuck(visit, name, origin):
    assert visit(name, origin).measured["stuck"] == 0


def test_no_control_is_dead(visit, name, origin):
    assert visit(name, origin).measured["dead"] == []


def test_images_have_alternative_text(visit, name):
    assert visit(name, "http").measured["images"] == []


def test_headings_are_in_order(visit, name):
    measured = visit(name, "http").measured
    assert measured["lang"]
    assert measured["title"].strip()
    assert measured["h1"] == 1
    levels = [level for level, _ in measured["headings"]]
    assert levels[:1] == [1], "the first heading of a page is its title"
    steps = [(a, b) for a, b in itertools.pairwise(levels) if b > a + 1]
    assert steps == [], f"a level is skipped in {measured['headings']}"
    assert all(text for _, text in measured["headings"])


def test_controls_have_names(visit, name):
    assert visit(name, "http").measured["unnamed"] == []


def test_identifiers_are_unique(visit, name):
    assert visit(name, "http").measured["duplicates"] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(visit, name, theme):
    assert visit(name, "http").measured[f"contrast-{theme}"] == []


def test_nothing_overflows_a_phone(visit, name):
    overflow = visit(name, "http").measured["overflow"]
    assert overflow["out"] == []
    assert overflow["page"] <= 0


def test_keyboard_reaches_everything_in_order(visit, name):
    """Tab from the top: the skip link comes first, then forward through the page, in sight."""
    stops = visit(name, "http").measured["stops"]
    assert stops, "nothing can be reached with the keyboard"
    assert stops[0]["text"] == "Skip to main content"
    assert [stop for stop in stops if not stop["shown"]] == [], "focus is invisible there"
    order = [stop["index"] for stop in stops]
    assert order == sorted(order), "focus jumps backwards"
    assert len(set(order)) == len(order), "focus is trapped"


def test_readable_without_javascript(browser, visit, address, name):
    """Without scripts, all that is not folded into a <details> of HTML's own is still shown."""
    context = browser.new_context(viewport=DESKTOP, java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address(name, "file"))
    article = page.locator("article")
    hidden = article.locator("p, li, pre, img, table, .admonition").evaluate_all(
        """(elements) => elements
            .filter((e) => !e.closest("details"))
            .filter((e) => !e.checkVisibility({ visibilityProperty: true }))
            .map((e) => e.outerHTML.slice(0, 120))"""
    )
    shown = article.inner_text()
    links = page.locator("nav a[href]").count()
    context.close()
    assert hidden == []
    assert visit(name, "file").measured["headings"][0][1].rstrip("# ") in " ".join(shown.split())
    assert links > 0, "no navigation"


def test_sliders_move_something(browser, address, settled, name):
    """A slider on the static page changes what stands around it, with the keyboard."""
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address(name, "file"))
    settled(page)
    rest = """(handle) => {
        const cell = handle.closest(".cell_output").cloneNode(true);
        cell.querySelectorAll(".widget-slider").forEach((slider) => slider.remove());
        return cell.innerHTML;
    }"""
    for handle in page.locator(".cell_output .noUi-handle").all():
        before = handle.evaluate(rest)
        at_maximum = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if at_maximum else "ArrowRight")
        page.wait_for_timeout(200)
        assert handle.evaluate(rest) != before
    context.close()
