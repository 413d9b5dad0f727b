"""Every link inside the book leads to a page and a place that exist."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag


class Page(HTMLParser):
    """Collect the identifiers and the links of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.identifiers: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key == "id":
                self.identifiers.add(value)
            elif key in ("href", "src") and value:
                self.links.append(value)


def test_links_lead_somewhere(html):
    paths = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    pages = {path.resolve(): Page(path) for path in paths}
    lost = []
    for path, page in pages.items():
        for link in page.links:
            target, fragment = urldefrag(link)
            if target.startswith(("http:", "https:", "mailto:", "data:", "javascript:")):
                continue
            file = (path.parent / unquote(target.split("?")[0])).resolve() if target else path
            known = pages[file].identifiers if file in pages else {unquote(fragment)}
            if not file.exists() or (fragment and unquote(fragment) not in known):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_no_page_names_a_folder_of_the_machine(html):
    root = str(Path(__file__).resolve().parents[2])
    pages = [path for path in html.rglob("*.html") if "_static" not in path.parts]
    assert [path.name for path in pages if root in path.read_text(encoding="utf-8")] == []
