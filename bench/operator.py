"""The operator under load: thousands of Finetunes on a real API server, on this machine.

    python -m bench.operator [--quick]

Each load has a bar; the first is measured against a bare loop that makes the same writes to the same kind of API server
in the same run, and the last line is that ratio. `--quick` takes a tenth of everything and proves the script.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from bench.fleet import AT_ONCE, Process, fresh_cluster, operator
from bench.loads.churn import soak
from bench.loads.created_at_once import created_at_once
from bench.loads.measured import QUICK, Line, Size
from bench.loads.neighbours import neighbours
from bench.loads.over import over_and_cold
from bench.loads.reports import reported
from bench.loads.whole_lives import requests_of_a_life
from bench.machine import machine
from bench.record import RESULTS, machine_words
from tests.cluster.light import LightCluster


def with_operator(load: Callable[[LightCluster, Process, Size], Any], size: Size) -> list[Line]:
    """A load on an API server and an operator of its own."""
    with fresh_cluster() as light, operator(light) as process:
        return [asyncio.run(load(light, process, size))]


def page(lines: list[Line], facts: dict[str, object]) -> str:
    """The table."""
    head = [
        "# The operator under load",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, which API server, etcd, controllers, load and operator share.",
        f"Both sides write with {AT_ONCE} requests in flight. Made by `make bench-operator`.",
        "",
        "| load | bar | measured | |",
        "|--|--|--|--|",
    ]
    rows = [
        f"| {line.load} | {line.bar} | {line.measured} | {'holds' if line.holds else '**missed**'} |" for line in lines
    ]
    return "\n".join([*head, *rows, ""])


def write(lines: list[Line], ratio: float) -> None:
    """`results/operator-<machine>.json` and `.md`, with the loads so far."""
    facts = machine()
    path = RESULTS / f"operator-{machine_words(facts)}.json"
    record = {"machine": facts, "ratio": round(ratio, 3), "lines": [vars(line) for line in lines]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(lines, facts), encoding="utf-8")


def main() -> int:
    """Every load in turn; the table, then the ratio."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    asked = parser.parse_args()
    size = QUICK if asked.quick else Size()
    lines, ratio = created_at_once(size)
    more, status = requests_of_a_life(size)
    lines += more
    print(f"{lines[-1].load}: {lines[-1].measured}", flush=True)
    for load in (
        lambda: over_and_cold(size, status),
        lambda: with_operator(reported, size),
        lambda: with_operator(neighbours, size),
        lambda: with_operator(soak, size),
    ):
        more = load()
        lines += more
        for line in more:
            print(f"{line.load}: {line.measured}", flush=True)
        if not asked.quick:
            write(lines, ratio)
    print(page(lines, machine()))
    print(f"{ratio:.2f} x")
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
