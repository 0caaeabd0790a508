"""The cluster from a command line: `python -m rig prepare|up|present|down|images`."""

import argparse
import subprocess
import sys
import time

from rig import images
from rig.cluster import Cluster
from rig.machine import RigError
from rig.node import Node
from rig.paths import CHART, KUBECONFIG, NAME, programs


def main() -> None:
    parser = argparse.ArgumentParser(prog="rig", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="build the programs and images that are missing; once, it takes many minutes")
    up = commands.add_parser("up", help="bring the cluster up and install Tidemark; as it is, where it is up")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--bare", action="store_true", help="without Tidemark")
    commands.add_parser("present", help="succeed where the cluster is up")
    commands.add_parser("down", help="remove the cluster and all that it had on this machine")
    commands.add_parser("images", help="build our image again, and import it on every node")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (RigError, subprocess.CalledProcessError) as error:
        sys.exit(f"cluster: {error}")


def run(arguments: argparse.Namespace) -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{NAME}: {time.monotonic() - began:5.1f} s  {text}", file=sys.stderr, flush=True)

    if arguments.command == "prepare":
        programs()
        images.prepare()
        return
    present = Cluster.present()
    if arguments.command == "present":
        sys.exit(present is None)
    if arguments.command == "down":
        (present or Cluster(0)).down()
    elif arguments.command == "images":
        if present is None:
            raise RigError("no cluster is up: `make cluster-up`")
        archive = images.tidemark_archive()
        for node in present.nodes:
            Node.import_images(node, archive)
    elif present is not None:
        say("is up already")
    else:
        cluster = Cluster(arguments.nodes)
        cluster.up(say)
        if not arguments.bare and (CHART / "Chart.yaml").exists():
            say("helm installs Tidemark")
            cluster.install()
        say("is up")
        print(f"export KUBECONFIG={KUBECONFIG} PATH={programs()}:$PATH")


if __name__ == "__main__":
    main()
