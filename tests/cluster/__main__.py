"""A real Kubernetes for tests and the demo. Needs nothing but Python and, for a node, root on Debian."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster import backend, check, node_init
from cluster.binaries import BINARIES, CONTROL_PLANE, binary
from cluster.control_plane import ControlPlane
from cluster.images import DOCKERFILES
from cluster.paths import ClusterError


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except ClusterError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python tests/cluster", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    binaries = verbs.add_parser("binaries", help="build what is missing, print the paths")
    binaries.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BINARIES))
    binaries.set_defaults(run=print_binaries)

    verbs.add_parser("up", help="bring a whole cluster up").set_defaults(run=lambda _: backend.up())
    verbs.add_parser("down", help="remove it without a trace").set_defaults(run=lambda _: backend.down())
    verbs.add_parser("status", help="up, starting or down").set_defaults(run=lambda _: print(backend.status()))
    verbs.add_parser("kubeconfig", help="print its path").set_defaults(run=lambda _: print(backend.kubeconfig()))
    verbs.add_parser("check", help="prove that it does what tests rely on").set_defaults(run=lambda _: check.run())

    images = verbs.add_parser("images", help="build our images into the cluster, print OPERATOR_IMAGE=... lines")
    images.add_argument("components", nargs="*", metavar="operator|trainer")
    images.set_defaults(run=build_images)
    load = verbs.add_parser("load", help="copy an image of buildah's or Docker's store into the cluster")
    load.add_argument("image")
    load.set_defaults(run=lambda arguments: backend.load(arguments.image))
    gpus = verbs.add_parser("fake-gpus", help="let the node offer nvidia.com/gpu that do not exist")
    gpus.add_argument("count", type=int)
    gpus.set_defaults(run=lambda arguments: backend.fake_gpus(arguments.count))

    verbs.add_parser("node-init").set_defaults(run=lambda _: node_init.main())  # what `up` starts; not for people
    verbs.add_parser("control-plane", help="an API server on loopback, until Ctrl-C").set_defaults(run=control_plane)
    return top


def known(names: list[str], all_names: Collection[str]) -> list[str]:
    for name in names:
        if name not in all_names:
            raise ClusterError(f"there is no {name}, only {', '.join(all_names)}")
    return names


def print_binaries(arguments: argparse.Namespace) -> None:
    for name in known(arguments.names, BINARIES) or CONTROL_PLANE:
        print(binary(name))


def build_images(arguments: argparse.Namespace) -> None:
    """Lines for a shell to eval."""
    for component in known(arguments.components, DOCKERFILES) or DOCKERFILES:
        print(f"{component.upper()}_IMAGE={backend.image(component)}", flush=True)


def control_plane(arguments: argparse.Namespace) -> None:
    """In the foreground; the path of the kubeconfig is the only thing on stdout."""
    signal.signal(signal.SIGTERM, end_once)
    with ControlPlane() as plane:
        print(plane.kubeconfig, flush=True)
        print("up; Ctrl-C stops it and removes everything", file=sys.stderr, flush=True)
        signal.pause()


def end_once(*_: object) -> None:
    """A second signal, as `timeout` sends it, must not interrupt the clearing up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
