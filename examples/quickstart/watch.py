"""Following a Finetune: one line of live progress until it has ended."""

import json
import time
from typing import Any

from examples.quickstart.places import Place
from examples.quickstart.terminal import LiveLine, say
from tests.cluster.problem import ClusterProblem

POLL_SECONDS = 2.0
LONGEST_SECONDS = 1800.0
ENDED = ("Succeeded", "Failed", "Suspended")

Json = dict[str, Any]


def line(status: Json) -> str:
    """Phase, and what is known of it: percent, step, loss and ETA, or what the run waits for."""
    parts = [f"{status.get('phase') or 'Pending':<10}"]
    progress, metrics = status.get("progress") or {}, status.get("metrics") or {}
    if progress.get("totalSteps"):
        parts.append(f"{progress['percent']:3d} %  step {progress['step']}/{progress['totalSteps']}")
    for words, value in (("loss", metrics.get("trainingLoss")), ("dev loss", metrics.get("validationLoss"))):
        if value is not None:
            parts.append(f"{words} {value:.4f}")
    if progress.get("step", 0) < progress.get("totalSteps", 0) and progress.get("etaSeconds") is not None:
        parts.append(f"ETA {progress['etaSeconds']} s")
    message = next((stage["message"] for stage in reversed(status.get("stages", [])) if stage.get("message")), "")
    return "  ".join([*parts, message])[:150].rstrip()


def follow(place: Place, name: str, namespace: str) -> Json:
    """The status of the Finetune once it has ended; a line of progress until then, and the seconds of each phase.

    Raises ClusterProblem when it takes longer than anything that still works.
    """
    shown, deadline = LiveLine(), time.monotonic() + LONGEST_SECONDS
    phase, since = "Pending", time.monotonic()
    while time.monotonic() < deadline:
        found = json.loads(place.kubectl("get", "finetune", name, "-n", namespace, "-o", "json"))
        status: Json = found.get("status", {})
        changed = status.get("phase", phase) != phase
        if changed:
            shown.end()
            say(phase, time.monotonic() - since)
            phase, since = status["phase"], time.monotonic()
        if phase in ENDED:
            return status
        shown.show(line(status), now=changed)
        time.sleep(POLL_SECONDS)
    raise ClusterProblem(
        f"{name} has not ended after {LONGEST_SECONDS / 60:.0f} minutes, it is {phase}. "
        f"Look at: kubectl describe finetune {name} -n {namespace}"
    )
