"""Progress to the operator: a POST every few seconds, and at once for a checkpoint. Loads without torch.

An endpoint that fails is warned about once and never fails the run: progress is a courtesy, the result is written too.
"""

import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from finetune_api.curve import thinned
from finetune_api.findings import PlanStatus
from finetune_api.names import Activity, Stage
from finetune_api.progress import BestStatus, CheckpointStatus, HistoryRow, Metrics, Progress
from finetune_api.run import ProgressReport, ReportTarget, RunResult, RunSpec

from finetune_trainer.log import Log, Number

INTERVAL_SECONDS = 5.0
"""Shortest time between two reports."""

TIMEOUT_SECONDS = 5.0
FINAL_TRIES = 4
"""Tries for the report that carries the result."""

FINAL_WAIT_SECONDS = 1.0
"""Wait before the second of them; each further wait is twice as long."""

Follower: TypeAlias = Callable[[HistoryRow, Metrics], None]
"""Who else wants to hear of each point of the curve; it must not raise."""


class Reporter:
    """What the run is doing, in the log and at the operator. Use as a context manager; `finish` inside it."""

    def __init__(self, spec: RunSpec, stage: Stage, log: Log, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self.log = log
        self._target = spec.report
        self._interval = interval_seconds
        self._report = ProgressReport(
            identity=spec.identity, stage=stage, attempt=spec.attempt, activity=_first_activity(stage)
        )
        self._history: list[HistoryRow] = []
        self._followers: list[Follower] = []
        self._gpu_percent: Callable[[], int | None] = lambda: None
        self._changed = threading.Condition()
        self._news = True
        self._urgent = False
        """Whether the news do not wait for the interval to be over."""
        self._stopped = False
        self._warned = False
        self._thread = threading.Thread(target=self._post_news, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._target is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def say(self, message: str, **numbers: Number) -> None:
        """One line in the log."""
        self.log.say(message, **numbers)

    def start(self, activity: Activity) -> None:
        """What the run does from now on."""
        self._update(activity=activity)

    def follow(self, follower: Follower) -> None:
        """Call `follower` with every further point of the curve."""
        self._followers.append(follower)

    def watch(self, gpu_percent: Callable[[], int | None]) -> None:
        """Tell with each further point of the curve how busy the GPUs are."""
        self._gpu_percent = gpu_percent

    def plan(self, plan: PlanStatus) -> None:
        """How the run goes about its work."""
        self._update(plan=plan)

    def progress(self, progress: Progress) -> None:
        """How far training is."""
        left = "" if progress.eta_seconds is None else f"{progress.eta_seconds} s left"
        self.log.bar(progress.step, progress.total_steps, left)
        self._update(progress=progress)

    def row(self, row: HistoryRow, metrics: Metrics, best: BestStatus | None = None) -> None:
        """One more point of the curve, the newest numbers, and the best dev loss so far."""
        self._history.append(row)
        metrics = metrics.model_copy(update={"gpu_utilization": self._gpu_percent()})
        for follow in self._followers:
            follow(row, metrics)
        self._update(metrics=metrics, history=thinned(self._history), best=best)

    def resume(self, history: list[HistoryRow], metrics: Metrics, progress: Progress, best: BestStatus | None) -> None:
        """What an earlier attempt had told, up to where this one goes on."""
        self._history = history
        self._update(metrics=metrics, history=thinned(history), progress=progress, best=best)

    def checkpoint(self, checkpoint: CheckpointStatus) -> None:
        """There is a checkpoint that a later attempt can go on from; told at once. May be called from any thread."""
        self._update(checkpoint=checkpoint, urgent=True)

    @property
    def reached(self) -> dict[str, Any]:
        """What stays although the stage may fail: the newest checkpoint, and the best dev loss."""
        with self._changed:
            return {"checkpoint": self._report.checkpoint, "best": self._report.best}

    def finish(self, result: RunResult, tries: int = FINAL_TRIES) -> None:
        """Send the result, trying a few times; the log says so if it does not arrive."""
        self._stop()
        self._update(result=result)
        if self._target is None:
            return
        for attempt in range(tries):
            if attempt:
                time.sleep(FINAL_WAIT_SECONDS * 2 ** (attempt - 1))
            if self._post(self._target):
                return

    def _update(self, urgent: bool = False, **changes: object) -> None:
        with self._changed:
            self._report = self._report.model_copy(update=changes)
            self._news = True
            self._urgent = self._urgent or urgent
            self._changed.notify()

    def _post_news(self) -> None:
        assert self._target is not None
        while self._wait_for_news():
            self._post(self._target)
            with self._changed:
                self._changed.wait_for(lambda: self._urgent or self._stopped, timeout=self._interval)

    def _wait_for_news(self) -> bool:
        """Wait until there is something to tell; False when nobody wants to hear it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._stopped)
            self._news = self._urgent = False
            return not self._stopped

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * TIMEOUT_SECONDS)

    def _post(self, target: ReportTarget) -> bool:
        try:
            with self._changed:
                self._report = self._report.model_copy(update={"sequence": self._report.sequence + 1})
                body = self._report.model_dump_json(by_alias=True, exclude_none=True).encode()
            post(target, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._warn_once(f"progress cannot be reported to {target.url}: {error}")
            return False
        return True

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self.log.warn(message)
        self._warned = True


def post(target: ReportTarget, body: bytes) -> None:
    """POST one report. Raises OSError (which HTTP errors are too), HTTPException or ValueError."""
    token = Path(target.token_file).read_text(encoding="utf-8").strip()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(target.url, data=body, headers=headers, method="POST")
    trusted = ssl.create_default_context(cafile=target.ca_file) if target.ca_file else None
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=trusted) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _first_activity(stage: Stage) -> Activity:
    return Activity.PREPARING if stage is Stage.PREPARE else Activity.LOADING
