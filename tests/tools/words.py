"""Refuse retired words in code, docs and charts: `make words`. docs/glossary.md has the word for each thing.

    python tests/tools/words.py                # the whole tree
    python tests/tools/words.py README.md ...  # these files

The patterns and the exceptions are in words.yaml, beside this file. A pattern is a regular expression. It sees the text in
lower case, and identifiers with underscores (ReadWish is read_wish). It matches a whole word or a whole part of an
identifier: `wish` matches "a wish" and `read_wish`, but neither "wishful" nor "swish". A blank in it matches an
underscore, too.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

TREE = Path(__file__).resolve().parent.parent.parent
LIST = Path(__file__).with_name("words.yaml")
PLACES = ["README.md", "CHANGELOG.md", "Makefile", "csi_driver", "tests", "bench", "docs", "charts"]
KINDS = frozenset({"", ".md", ".py", ".sh", ".tpl", ".txt", ".yaml", ".json"})
GENERATED = ("csi_driver/_pb/", "tests/chart/__snapshots__/")  # made from what is checked, or from the protocol of CSI
INNER_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class Word:
    """A retired word: how to find it, and the word to write instead. `files`: a glob of the paths that it concerns."""

    pattern: re.Pattern[str]
    write: str
    files: str = "*"


@dataclass(frozen=True)
class Allowed:
    """A text that may contain retired words, in the files that `files` matches."""

    text: re.Pattern[str]
    files: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """One retired word in one line."""

    path: str
    line: int
    word: str
    write: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.word}': write {self.write}"


def read_list(text: str) -> tuple[list[Word], list[Allowed]]:
    """Read words.yaml. Raises ValueError if an entry has no word to write, or an exception no reason."""
    entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    words, allowed = [], []
    for entry in entries["words"]:
        if not entry.get("write"):
            raise ValueError(f"words.yaml: {entry['pattern']} has no word to write instead")
        pattern = entry["pattern"].replace(" ", "[ _]")
        words.append(Word(re.compile(f"(?:{pattern})(?![a-z])"), entry["write"], entry.get("files", "*")))
    for entry in entries["exceptions"]:
        if not entry.get("reason"):
            raise ValueError(f"words.yaml: the exception {entry} has no reason")
        allowed.append(Allowed(re.compile(entry.get("text", ".*")), entry.get("files", "*"), entry["reason"]))
    return words, allowed


def check(path: str, text: str, words: Sequence[Word], allowed: Sequence[Allowed]) -> Iterator[Finding]:
    """Yield the retired words of one file, by lines. `path` is relative to the tree."""
    exceptions = [entry.text for entry in allowed if fnmatchcase(path, entry.files)]
    # ReadWish becomes read_wish. The boundary on the left is tested by hand: 45 patterns that begin with a letter and
    # not with an assertion take 1.4 s for this tree, and not 11 s.
    text = INNER_CAPITAL.sub("_", text).lower()
    found: list[tuple[int, Word, str]] = []
    for word in words:
        if not fnmatchcase(path, word.files):
            continue
        for match in word.pattern.finditer(text):
            if match.start() and "a" <= text[match.start() - 1] <= "z":
                continue
            begin = text.rfind("\n", 0, match.start()) + 1
            end = text.find("\n", match.end())
            line = text[begin : end if end >= 0 else len(text)]
            span = (match.start() - begin, match.end() - begin)
            if not any(_covers(exception, line, span) for exception in exceptions):
                found.append((match.start(), word, match.group()))
    for start, word, matched in sorted(found, key=lambda item: item[0]):
        yield Finding(path, text.count("\n", 0, start) + 1, matched, word.write)


def _covers(exception: re.Pattern[str], line: str, span: tuple[int, int]) -> bool:
    """Whether the exception matches a text of this line that contains the whole word."""
    return any(match.start() <= span[0] and span[1] <= match.end() for match in exception.finditer(line))


def files(places: Sequence[str]) -> Iterator[Path]:
    """Yield the text files below these places, without generated ones."""
    for place in map(TREE.joinpath, places):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            name = relative(path)
            if path.is_file() and path.suffix in KINDS and "__pycache__" not in name and not name.startswith(GENERATED):
                yield path


def relative(path: Path) -> str:
    """Return the path as it is written in findings and in words.yaml: from the root of the tree, if it is in there."""
    return (path.relative_to(TREE) if path.is_relative_to(TREE) else path).as_posix()


def main(arguments: Sequence[str]) -> int:
    """Print each finding and a count of each word. Returns 1 if there are any."""
    words, allowed = read_list(LIST.read_text())
    findings = [
        finding
        for path in files([str(Path(name).resolve()) for name in arguments] or PLACES)
        for finding in check(relative(path), path.read_text(), words, allowed)
    ]
    for finding in findings:
        print(finding)
    if findings:
        counts = Counter(finding.write for finding in findings)
        summary = ", ".join(f"{count} x {write}" for write, count in counts.most_common())
        print(f"{len(findings)} retired words (docs/glossary.md). To write instead: {summary}.", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
