"""What the builder of the site does not refuse: dead and absolute links of any kind, orphan pages, content from elsewhere.

It reads the built pages, so it sees what a browser sees: links of Markdown and of HTML, images, scripts, style sheets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
"""What a browser fetches without being asked, by the attribute that names it."""
NOT_FETCHED = frozenset({"canonical", "prev", "next", "alternate"})


@dataclass
class Page(HTMLParser):
    """One built page: the ends of links in it, the links of its text, and what it loads."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    in_text: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    article: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag links to, loads or names."""
        values = {name: value or "" for name, value in attrs}
        self.article += tag == "article"
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if self.article:
                self.in_text.add(values["href"])
        elif values.get(LOADED.get(tag, "")) and not NOT_FETCHED & set(values.get("rel", "").split()):
            self.loads.append(values[LOADED[tag]])

    def handle_endtag(self, tag: str) -> None:
        """Leave the text of the page."""
        self.article -= tag == "article"


def check(site: Path) -> list[str]:
    """Return what is wrong with the built site, each with the page, in the words of somebody who mends it."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = [problem for page in pages.values() for problem in problems(page, pages, site)]
    for path in sorted(pages.keys() - reached(pages, site)):
        name = source(path, site)
        found.append(f"{name}: no page that a reader can reach links to it; add a link, for example in docs/index.md")
    return found


def problems(page: Page, pages: dict[Path, Page], site: Path) -> Iterator[str]:
    """Yield the dead and absolute links of a page, and what it loads from elsewhere."""
    name = source(page.path, site)
    for link in dict.fromkeys(page.loads):
        if link.startswith("//") or urlsplit(link).scheme not in {"", "data"}:
            yield f"{name}: loads {link}; a reader's browser must fetch nothing from elsewhere"
        elif not link.startswith("data:") and not target(page.path, link).is_file():
            yield f"{name}: loads {link}, which does not exist"
    for link in dict.fromkeys(page.links):
        parts = urlsplit(link)
        if parts.scheme or link.startswith("//"):
            continue
        if parts.path.startswith("/"):
            yield f"{name}: {link} is absolute; write it relative to the page"
            continue
        path = target(page.path, link)
        if not path.is_file():
            yield f"{name}: {link} is dead: no such page or file in the site"
        elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].ids:
            yield f"{name}: {link} is dead: {source(path, site)} has no such heading"


def reached(pages: dict[Path, Page], site: Path) -> set[Path]:
    """Return the pages that the texts of pages lead to, beginning at the first one. The navigation does not count."""
    start = site / "index.html"
    found, todo = {start}, [start]
    while todo:
        page = pages.get(todo.pop())
        for link in page.in_text if page else ():
            path = target(page.path, link) if page and not urlsplit(link).scheme else start
            if path in pages and path not in found:
                found.add(path)
                todo.append(path)
    return found


def target(page: Path, link: str) -> Path:
    """Return the file of the site that a relative link leads to; the page itself for a heading alone."""
    path = unquote(urlsplit(link).path)
    where = (page.parent / path).resolve() if path else page
    return where / "index.html" if where.is_dir() else where


def source(path: Path, site: Path) -> str:
    """Return the name of a page as its author knows it."""
    return "docs/" + path.relative_to(site).with_suffix(".md").as_posix()
