"""The tutorials of the documentation, word by word: what they tell a reader to type is typed, and prints what they say."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import images
from rig.cluster import Cluster
from rig.kubectl import Kubectl
from rig.paths import KUBECONFIG, TREE, programs

TUTORIALS = sorted((TREE / "docs" / "tutorial").glob("*.md"))
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""What is typed, and, in a block after it, what that prints. Blocks that are set in by four spaces are done already."""


def blocks(page: Path) -> Iterator[tuple[str, str | None]]:
    """Each block that is typed, with what it must print; None where the page does not say."""
    found = BLOCK.findall(page.read_text())
    for place, (kind, text) in enumerate(found):
        if kind == "sh":
            after = found[place + 1] if place + 1 < len(found) else ("", "")
            yield text, after[1] if after[0] == "text" else None


@pytest.mark.slow(seconds=190)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page: Path, cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_bytes(KUBECONFIG.read_bytes())
    config.chmod(0o600)
    environment = {**os.environ, "KUBECONFIG": str(config), "PATH": f"{programs()}:{os.environ['PATH']}"}

    def type_in(text: str) -> str:
        run = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            env=environment,
            cwd=TREE,
            check=False,
        )
        assert run.returncode == 0, f"{page.name} tells to type:\n{text}\n{run.stdout}{run.stderr}"
        return run.stdout

    type_in(f"kubectl config set-context --current --namespace={kubectl.namespace}")
    if "image: postgres:" in page.read_text():
        archive = images.postgres_archive()
        for node in cluster.nodes:
            node.import_images(archive)
    typed = list(blocks(page))
    assert typed, f"{page.name} has nothing to type"
    for text, printed in typed:
        output = type_in(text)
        assert printed is None or output == printed, f"{page.name} says that this prints {printed!r}:\n{text}\n{output}"
