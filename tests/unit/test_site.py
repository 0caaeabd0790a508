"""The site of the documentation: what a forge shows of a page is what the site shows, and no bad page gets into it."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from markdown_it import MarkdownIt

TREE = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TREE / "tests" / "tools"))

import build_site  # noqa: E402
import site_check  # noqa: E402
import site_pages  # noqa: E402

PAGES = [*sorted((TREE / "docs").rglob("*.md")), TREE / "CHANGELOG.md"]
GOOD = {
    "docs/index.md": "# Start\n\n[a page](how-to/one.md), [its part](how-to/one.md#part-two), [a picture](p.svg)\n",
    "docs/how-to/one.md": "# One\n\n## Part two\n\n* see\n\n      code of an item\n\n  [back](../index.md)\n",
    "docs/p.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>',
    "docs/.nav.yml": "nav:\n  - index.md\nappend_unmatched: true\n",
    "docs/site.css": "",
}
BAD = {
    "docs/orphan.md": "# Nobody links to this\n",
    "docs/one.md": "# One\n\n[dead](nowhere.md)\n",
    "docs/two.md": "# Two\n\n[dead heading](one.md#nothing), [of its own](#nothing)\n",
    "docs/three.md": "# Three\n\n[absolute](/how-to/one.html), ![no picture](none.png), [a directory](how-to/)\n",
    "docs/four.md": '# Four\n\n<a href="none.html">raw</a> <img src="https://example.com/x.png" alt="">\n',
    "docs/how-to/five.md": "# Five\n\n[out of the tree](../../../none.md)\n",
}
LINKS = "\n[1](one.md) [2](two.md) [3](three.md) [4](four.md) [5](how-to/five.md)\n"


def tree(place: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (place / "zensical.toml").write_bytes((TREE / "zensical.toml").read_bytes())
    return place


def test_a_good_tree_is_built(tmp_path: Path) -> None:
    assert build_site.build(tree(tmp_path, GOOD)) == []
    assert (tmp_path / "build" / "site" / "how-to" / "one.html").is_file()
    page = site_check.Page(tmp_path / "build" / "site" / "index.html")
    assert page.loads
    assert not [link for link in page.loads if "//" in link]


def test_every_bad_page_is_refused_by_name(tmp_path: Path) -> None:
    files = GOOD | BAD
    found = build_site.build(tree(tmp_path, files | {"docs/index.md": files["docs/index.md"] + LINKS}))
    expected = [
        r"docs/orphan\.md: no page .* links to it; add a link, for example in docs/index\.md",
        r"docs/one\.md: nowhere\.html is dead",
        r"docs/two\.md: one\.html#nothing is dead: docs/one\.md has no such heading",
        r"docs/two\.md: #nothing is dead",
        r"docs/three\.md: /how-to/one\.html is absolute",
        r"docs/three\.md: loads none\.png, which does not exist",
        r"docs/three\.md: how-to is dead",
        r"docs/four\.md: none\.html is dead",
        r"docs/four\.md: loads https://example\.com/x\.png; a reader's browser must fetch nothing from elsewhere",
        r"docs/how-to/five\.md: .*none\.html is dead",
        # What the builder says by itself.
        r"docs/one\.md:3:8: page does not exist",
        r"docs/two\.md:3:\d+: anchor does not exist",
    ]
    missing = [pattern for pattern in expected if not any(re.match(pattern, problem) for problem in found)]
    assert not missing, found
    assert not [problem for problem in found if re.match(r"docs/(index|how-to/one)\.md", problem)]


def test_a_navigation_that_names_a_missing_page_is_refused(tmp_path: Path) -> None:
    found = build_site.build(tree(tmp_path, GOOD | {"docs/.nav.yml": "nav:\n  - index.md\n  - gone.md\n"}))
    assert any("gone.md" in problem for problem in found), found


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[the values](../../charts/values.yaml)", "the values (`charts/values.yaml`)"),
        ("[`charts/values.yaml`](../../charts/values.yaml)", "`charts/values.yaml`"),
        ("[what is new](../../CHANGELOG.md)", "[what is new](../changelog.md)"),
        ("[start](../../README.md#more)", "[start](../index.md#more)"),
        ("[all](../adr/)", "[all](../adr/index.md)"),
        ("[one](one.md#part)", "[one](one.md#part)"),
        ("[far](https://example.com/a.md)", "[far](https://example.com/a.md)"),
        ("    as code: [x](../../../gone)", "    as code: [x](../../../gone)"),
        ("```\n[x](../../charts/values.yaml)\n```", "```\n[x](../../charts/values.yaml)\n```"),
    ],
)
def test_a_link_that_leaves_the_docs_names_the_file(tmp_path: Path, link: str, shown: str) -> None:
    files = {
        "charts/values.yaml": "",
        "CHANGELOG.md": "",
        "README.md": "",
        "docs/adr/index.md": "",
        "docs/how-to/one.md": "",
    }
    place = tree(tmp_path, files)
    assert site_pages.inner_links(link, place / "docs" / "how-to" / "one.md", place) == shown


def test_links_of_the_changelog_are_those_of_a_page_of_the_docs(tmp_path: Path) -> None:
    place = tree(tmp_path, {"CHANGELOG.md": "", "docs/how-to/one.md": ""})
    assert site_pages.inner_links("[one](docs/how-to/one.md)", place / "CHANGELOG.md", place) == "[one](how-to/one.md)"


class Blocks(HTMLParser):
    """The blocks of a page in their order, and the text of its code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._code = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"ul", "ol", "li", "pre", "table", "tr", "h1", "h2", "h3", "h4", "blockquote"}:
            self.found.append(tag)
        self._code += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "pre"

    def handle_data(self, data: str) -> None:
        if self._code:
            self.found.append(data)


def blocks(html: str) -> list[str]:
    """Blocks, with the text of each code block in one piece, without the blank lines around it."""
    joined: list[str] = []
    for part in Blocks(html).found:
        if joined and not re.fullmatch(r"[a-z]+\d?", part) and joined[-1].startswith("code:"):
            joined[-1] += part
        else:
            joined.append(part if re.fullmatch(r"(ul|ol|li|pre|table|tr|h\d|blockquote)", part) else f"code:{part}")
    return [part.rstrip() for part in joined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_blocks_that_a_forge_shows(page: Path) -> None:
    """Lists, code within them, tables and headings are those of CommonMark, although the builder reads another dialect."""
    text = page.read_text()
    forge = MarkdownIt("commonmark").enable("table").render(text)
    site = markdown.markdown(site_pages.lists(text), extensions=["tables", "pymdownx.superfences"])
    site = re.sub(r"</?span[^>]*>|<a id=[^>]*></a>", "", site)
    assert blocks(site) == blocks(forge)
