"""Compiles the protocol files into ``csi_driver/_pb``, as a build hook of hatchling and as a script.

The generated modules are not kept in git: they follow from ``proto/``, and must fit the pinned versions of protobuf and
grpcio, not those of whoever committed last. So every build makes them, an editable install included. After a change of
a protocol file in an editable tree, ``python proto/hatch_build.py`` makes them again in place.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from grpc_tools import protoc  # type: ignore[import-untyped]
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The directories below proto/ are those of the import package on purpose: protoc derives the imports between generated
# modules from the path below -I, so this path is what makes it write `from csi_driver._pb import csi_pb2`.
PACKAGE = Path("csi_driver", "_pb")

INIT = '"""Generated from the files in proto/ by proto/hatch_build.py: not to be edited, not kept in git."""\n'

# Options of protoc-gen-mypy_grpc:
# - only_async: the stubs describe grpc.aio alone. `async def M(self, request, context)` then implements a unary call,
#   and an async generator a streaming one, under `mypy --strict`; an XStub's calls are awaitable. Without it a call's
#   type is a union of both worlds, which every client would have to narrow.
# - Not generate_concrete_servicer_stubs: XServicer stays abstract for mypy, so a call that a complete servicer forgets
#   is a type error, not an UNIMPLEMENTED at run time. What we do not offer is answered in so many words.
# - quiet: a build prints no line per file.
MYPY_GRPC_OPTIONS = "quiet,only_async"
MYPY_OPTIONS = "quiet"


def generate(root: Path) -> list[Path]:
    """Compiles every protocol file of the tree at ``root`` and returns the files of ``csi_driver/_pb``.

    The output goes through a temporary directory: a file that fails to compile leaves the old modules as they were, a
    module whose protocol file is gone goes too, and what has not changed keeps its time, so that nothing that caches by
    time (mypy, bytecode) starts anew.
    """
    include = root / "proto"
    target = root / PACKAGE
    sources = sorted(path.relative_to(include).as_posix() for path in (include / PACKAGE).glob("*.proto"))
    if not sources:
        raise FileNotFoundError(f"no protocol files in {include / PACKAGE}")
    with tempfile.TemporaryDirectory(prefix="tidemark-proto-") as scratch:
        output = Path(scratch, "out")
        output.mkdir()
        arguments = [
            "protoc",
            f"-I{include}",
            f"-I{Path(protoc.__file__).parent / '_proto'}",  # google/protobuf/*.proto
            f"--python_out={output}",
            f"--grpc_python_out={output}",
            *_mypy_arguments(Path(scratch), output),
            *sources,
        ]
        status = protoc.main(arguments)
        if status != 0:
            raise RuntimeError(f"protoc ended with status {status} for: {', '.join(sources)}")
        made = {path.name: path.read_bytes() for path in (output / PACKAGE).iterdir()}
    made["__init__.py"] = INIT.encode()
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.iterdir():
        if stale.is_file() and stale.name not in made:
            stale.unlink()
    for name, content in made.items():
        path = target / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    return sorted(target / name for name in made)


def _mypy_arguments(scratch: Path, output: Path) -> list[str]:
    """The arguments that add type stubs; none where mypy-protobuf is not installed, since only mypy needs them.

    protoc starts its plugins by name from PATH, where the scripts of a virtual environment are only while it is
    activated. So it is handed small scripts of our own, which run the plugins with this interpreter.
    """
    if importlib.util.find_spec("mypy_protobuf") is None:
        print("mypy-protobuf is not installed: csi_driver/_pb gets no type stubs", file=sys.stderr)
        return []
    arguments: list[str] = []
    for plugin, function, options in (("mypy", "main", MYPY_OPTIONS), ("mypy_grpc", "grpc", MYPY_GRPC_OPTIONS)):
        script = scratch / f"protoc-gen-{plugin}"
        code = f"from mypy_protobuf.main import {function}; {function}()"
        script.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
        script.chmod(0o700)
        arguments += [f"--plugin=protoc-gen-{plugin}={script}", f"--{plugin}_out={options}:{output}"]
    return arguments


class ProtoBuildHook(BuildHookInterface[Any]):
    """Makes the modules before hatchling collects the files of a wheel, an editable wheel or a source archive."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Runs for the versions ``standard`` and ``editable`` alike: an editable tree needs the modules as well.

        ``artifacts`` in pyproject.toml lets the wheel have them although git ignores them.
        """
        generate(Path(self.root))

    def clean(self, versions: list[str]) -> None:  # noqa: ARG002
        """Removes what was made, for ``hatchling build --clean-hooks-after`` and the like."""
        target = Path(self.root) / PACKAGE
        for path in target.glob("*"):
            if path.is_file():
                path.unlink()


def main() -> int:
    """Makes the modules again in place."""
    parser = argparse.ArgumentParser(description="Compile proto/ into csi_driver/_pb.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="top of the tree")
    for path in generate(parser.parse_args().root):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
