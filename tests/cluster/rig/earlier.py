"""The version before: its tree from git's history, with its chart and the image that it builds of itself. Kept in the cache."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rig import images
from rig.machine import RigError
from rig.paths import TREE

COMMIT = "4414c43"
"""Moved on with each release, to the one before: what is installed first in the scenario of upgrades."""
TIDEMARK = f"localhost/tidemark-csi:{COMMIT}"
PARTS = ("Dockerfile", "LICENSE", "README.md", "pyproject.toml", "csi_driver", "proto", "charts", "tests/image")


def missing() -> str:
    """Why the version before cannot be had here; empty where it can."""
    if (_cache() / "versions" / COMMIT).exists():
        return ""
    known = subprocess.run(
        ["git", "-C", TREE, "cat-file", "-e", f"{COMMIT}^{{tree}}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if not known.returncode:
        return ""
    return f"needs commit {COMMIT}, the version before, of git's history: a clone without it gets it by `git fetch --unshallow`"


def tree() -> Path:
    """The directory that holds what is needed of that version. Raises RigError where git does not have it."""
    kept = _cache() / "versions" / COMMIT
    if not kept.exists():
        part = kept.with_name(f"{COMMIT}.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "-C", TREE, "archive", COMMIT, *PARTS], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if archive.returncode:
            raise RigError(f"commit {COMMIT} cannot be had of {TREE}: {missing() or archive.stderr.decode().strip()}")
        subprocess.run(["tar", "--extract", f"--directory={part}"], input=archive.stdout, check=True)
        try:
            part.rename(kept)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return kept


def chart() -> Path:
    return tree() / "charts" / "tidemark"


def build() -> None:
    """Build its image by its own Dockerfile, unless that is there."""
    images.build_sh(TIDEMARK, tree=tree())


def archive() -> Path:
    """Its image as a file that nodes import."""
    build()
    return images.exported(TIDEMARK)


def values() -> dict[str, Any]:
    """What its chart is to be told: its image, and the sidecars that the nodes have."""
    versions = images.versions()
    sidecars = {name: {"tag": versions[f"csi-{name}"]} for name in ("provisioner", "snapshotter", "resizer")}
    return {"image": dict(zip(("repository", "tag"), TIDEMARK.rsplit(":", 1), strict=True)), "sidecars": sidecars}


def _cache() -> Path:
    """As the scripts of tests/tools have it."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TIDEMARK_CACHE") or Path(user) / "tidemark")
