"""The command line: python -m tests.cluster up | down | status | build | logs | kubectl | helm | load-image."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from tests.cluster import local_cluster, report
from tests.cluster.binaries import built_binaries
from tests.cluster.problem import ClusterProblem

PASSED_ON = ("kubectl", "helm", "load-image")
"""Commands whose arguments are somebody else's; argparse would take `-n` and `--help` for its own."""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code. A ClusterProblem becomes one message and the code 1."""
    try:
        if arguments and arguments[0] in PASSED_ON:
            return _pass_on(arguments[0], list(arguments[1:]))
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], None] = options.run
        run(options)
    except ClusterProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    up = command("up", _up, "start the cluster, if it is not up")
    up.add_argument("--install", action="store_true", help="install missing Debian packages with apt-get")
    down = command("down", _down, "stop the cluster; the images stay")
    down.add_argument("--purge", action="store_true", help="remove images and certificates, too")
    command("status", lambda _: print(report.status()), "say what is running")
    command("build", _build, "build the programs, if they are not in the cache")
    logs = command("logs", _logs, "print the end of a component's or a pod's log")
    logs.add_argument("name", nargs="?", metavar="COMPONENT|NAMESPACE/POD", help="without: list what has logs")
    logs.add_argument("--lines", type=int, default=100, help="how many lines (100)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on printing what is added")
    for name, text in zip(PASSED_ON, ("run kubectl", "run helm", "build images and load them"), strict=True):
        commands.add_parser(name, help=f"{text}; all arguments are passed on")
    return parser


def _up(options: argparse.Namespace) -> None:
    started = time.monotonic()
    cluster = local_cluster.up(install=options.install)
    print(f"The cluster is up ({time.monotonic() - started:.1f} s). export KUBECONFIG={cluster.kubeconfig}")


def _down(options: argparse.Namespace) -> None:
    local_cluster.down(purge=options.purge)
    print("The cluster is down.")


def _build(options: argparse.Namespace) -> None:
    print(built_binaries())


def _logs(options: argparse.Namespace) -> None:
    report.print_logs(options.name, options.lines, follow=options.follow)


def _pass_on(command: str, arguments: list[str]) -> int:
    if command == "load-image":
        from tests.cluster import images  # Only here: the other commands must work without its packages.

        return images.main(arguments)
    return _become(command, arguments)


def _become(program: str, arguments: list[str]) -> NoReturn:
    """Replaces this process by kubectl or helm, so that terminal, signals and exit code are theirs."""
    cluster = local_cluster.running()
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    sys.stdout.flush()
    os.execve(cluster.binary(program), [program, *arguments], environment)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that a half-started cluster is taken down again.
    sys.exit(main(sys.argv[1:]))
