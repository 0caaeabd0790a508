"""The documentation as a reader walks it: links lead somewhere, every page can be reached, and names are those of the chart."""

import re
from pathlib import Path

from csi_driver.domain import mount_flags

TREE = Path(__file__).resolve().parent.parent.parent
START = TREE / "README.md"
PAGES = [
    START,
    TREE / "CHANGELOG.md",
    TREE / "charts" / "tidemark" / "README.md",
    *sorted((TREE / "docs").rglob("*.md")),
]


def links(page: Path) -> list[tuple[Path, str]]:
    """Where a page's links lead within the tree: a file or a directory, and the heading in it or nothing."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            path, _, heading = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, heading))
    return found


def headings(page: Path) -> set[str]:
    """A page's headings as the ends of links: lower case, without punctuation, dashes for blanks."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target, heading in links(page):
            assert target.exists(), f"{page.relative_to(TREE)} links to {target}, which is not there"
            assert not heading or heading in headings(target), f"{page.relative_to(TREE)}: {target} has no #{heading}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = {START}, [START]
    while todo:
        for target, _ in links(todo.pop()):
            for page in target.glob("*.md") if target.is_dir() else [target]:
                if page.suffix == ".md" and page not in reached:
                    reached.add(page)
                    todo.append(page)
    assert {page for page in PAGES if page.is_relative_to(TREE / "docs")} <= reached


def test_the_places_for_changes_exist() -> None:
    """The table of the architecture: a path is relative to the tree or the package, a bare name to the path before it in its row."""
    page = (TREE / "docs" / "architecture.md").read_text()
    table = page.split("## Where to find the place for a change")[1].split("\n\n")[1]
    rows = table.splitlines()[2:]
    assert len(rows) >= 25
    for row in rows:
        base = TREE / "csi_driver"
        for path in re.findall(r"`([\w./-]+(?:\.(?:py|yaml|json|tpl|proto)|/))`", row):
            places = [TREE / path, TREE / "csi_driver" / path, TREE / "charts" / "tidemark" / path, base / path]
            there = [place for place in places if place.exists()]
            assert there, f"{path} is not there: {row}"
            base = there[0] if there[0].is_dir() else there[0].parent


def test_lines_of_prose_are_not_too_long() -> None:
    """120 characters, but for tables, code and links that are longer by themselves."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    ", "       "))]
        assert not [line for line in long if " " in line.strip()], (page.relative_to(TREE), long)


def test_every_alert_has_its_line_in_the_page_on_monitoring() -> None:
    alerts = (TREE / "charts" / "tidemark" / "files" / "alerts.yaml").read_text()
    page = (TREE / "docs" / "how-to" / "monitoring.md").read_text()
    lines = re.findall(r"^\| \[`(\w+)`\]\(runbooks/(\w+)\.md\) \| (\w+) \|", page, re.MULTILINE)
    severities = re.findall(r"- alert: (\w+)$.*?severity: (\w+)", alerts, re.MULTILINE | re.DOTALL)
    assert sorted(lines) == sorted((name, name, severity) for name, severity in severities)


def test_the_mount_flags_of_the_reference_are_those_that_are_allowed() -> None:
    page = (TREE / "docs" / "reference" / "parameters.md").read_text()
    rows = {
        name: set(re.findall(r"`(\w+)(?:=[^`]*)?`", flags))
        for name, flags in re.findall(r"^\| (every|ext4|xfs) \| (.*) \|$", page, re.MULTILINE)
    }
    kinds = {"every": "", "ext4": "ext4", "xfs": "xfs"}
    assert rows == {name: {*mount_flags.plain_flags(kind), *mount_flags.examples(kind)} for name, kind in kinds.items()}


def test_nothing_is_mounted_by_a_label() -> None:
    """A tenant's disk may carry the same one. The page that warns of labels names them, and no other makes or uses any."""
    labels = re.compile(r"\bLABEL=|/by-label|\bmkfs\S*[^`\n]* -L\b|\bmount [^`\n]*-L\b")
    named = {page.relative_to(TREE).as_posix() for page in PAGES if labels.search(page.read_text())}
    assert named == {"docs/how-to/tenants-data.md"}
