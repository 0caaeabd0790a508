"""The chart rendered by helm, as documents: with values of a test, for a version of Kubernetes, and for what a cluster serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

CHART = Path(__file__).resolve().parent.parent.parent / "charts" / "tidemark"
VALUES = Path(__file__).resolve().parent / "values"

SNAPSHOTS = ("snapshot.storage.k8s.io/v1/VolumeSnapshotClass",)
GROUPS = ("groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshotClass",)
EVERYTHING = SNAPSHOTS + GROUPS
"""What a cluster serves that has all definitions of snapshots."""

KUBERNETES = "1.34.4"


class Refused(Exception):
    """Helm did not render; the message is helm's."""


class Rendered(list[Document]):
    """All documents of a rendering, in helm's order."""

    def of(self, kind: str) -> list[Document]:
        """All of one kind."""
        return [document for document in self if document["kind"] == kind]

    def one(self, kind: str, name: str) -> Document:
        """The one of that kind and name."""
        (found,) = [document for document in self.of(kind) if document["metadata"]["name"] == name]
        return found

    def names(self, kind: str) -> set[str]:
        """Names of all of one kind."""
        return {document["metadata"]["name"] for document in self.of(kind)}

    def container(self, name: str) -> Document:
        """The one container of that name, wherever it is."""
        pods = [document["spec"]["template"]["spec"] for document in self if "template" in document.get("spec", {})]
        found = [
            container
            for pod in pods
            for container in [*pod.get("initContainers", []), *pod["containers"]]
            if container["name"] == name
        ]
        assert len(found) == 1, f"{len(found)} containers are called {name}"
        return found[0]


class Chart:
    """`helm template` of the chart; the same question is asked once."""

    def __init__(self, helm: Path) -> None:
        self._helm = helm
        self._texts: dict[tuple[str, ...], str] = {}

    def text(
        self,
        values: Document | Path | None = None,
        *,
        kubernetes: str = KUBERNETES,
        serves: Iterable[str] = EVERYTHING,
        sets: Iterable[str] = (),
        strings: Iterable[str] = (),
        chart: Path = CHART,
        release: str = "tidemark",
        namespace: str = "tidemark",
    ) -> str:
        """The manifests as helm writes them. Raises Refused."""
        argv = [
            str(self._helm),
            "template",
            release,
            str(chart),
            "--namespace",
            namespace,
            "--kube-version",
            kubernetes,
        ]
        argv += [word for api in serves for word in ("--api-versions", api)]
        argv += [word for one in sets for word in ("--set", one)]
        argv += [word for one in strings for word in ("--set-string", one)]
        given: str | None = None
        if isinstance(values, Path):
            argv += ["--values", str(values)]
        elif values:
            argv += ["--values", "-"]
            given = yaml.safe_dump(values)
        key = (*argv, given or "")
        if key not in self._texts:
            run = subprocess.run(argv, input=given or "", capture_output=True, text=True, check=False)
            if run.returncode:
                raise Refused(run.stderr)
            self._texts[key] = run.stdout
        return self._texts[key]

    def render(self, values: Document | Path | None = None, **options: Any) -> Rendered:
        """The manifests as documents. Raises Refused."""
        text = self.text(values, **options)
        return Rendered(document for document in yaml.load_all(text, StrictLoader) if document)

    def lint(self) -> str:
        """What `helm lint --strict` says of the chart as it is."""
        argv = [self._helm, "lint", "--strict", CHART, "--kube-version", KUBERNETES]
        run = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
        return run.stdout + run.stderr

    def notes(self, values: Document | None = None, **options: Any) -> str:
        """What helm tells whoever has installed it: `helm template` renders that, but does not show it."""
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(shutil.copytree(CHART, Path(directory) / "tidemark"))
            (copy / "templates" / "NOTES.txt").rename(copy / "notes.tpl")
            notes = 'kind: Notes\ntext: |-\n  {{- tpl (.Files.Get "notes.tpl") . | nindent 2 }}\n'
            (copy / "templates" / "notes.yaml").write_text(notes)
            (found,) = self.render(values, chart=copy, **options).of("Notes")
        return str(found["text"])


def values_in(text: str) -> Iterator[Document]:
    """The indented blocks of a page of documentation that are values of the chart."""
    known = set(json.loads((CHART / "values.schema.json").read_text())["properties"])
    block = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("    "):
            block += f"{line}\n"
            continue
        try:
            values = yaml.safe_load(block)
        except yaml.YAMLError:  # commands, and what they print
            values = None
        if isinstance(values, dict) and set(values) <= known:
            yield values
        block = ""


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that is there twice: YAML's readers would take one of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(set(keys)) == len(keys), f"a key is there twice: {keys} at {node.start_mark}"
        return super().construct_mapping(node, deep)
