"""Progress and results on their way to the operator, and the log."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from finetune_api.names import Activity, Stage
from finetune_api.progress import BestStatus, CheckpointStatus, HistoryRow, Metrics, Progress
from finetune_api.run import ReportTarget, RunResult, RunSpec
from finetune_trainer import report as report_module
from finetune_trainer.log import Log
from finetune_trainer.report import Reporter

from tests.cluster.certificates import make_authority, make_certificate
from tests.trainer.reports_server import reports_server
from tests.trainer.runs import a_run

RESULT = RunResult(stage=Stage.TRAIN, progress=Progress(percent=100))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "FINAL_WAIT_SECONDS", 0.01)


def a_run_that_reports(tmp_path: Path, url: str) -> RunSpec:
    token = tmp_path / "token"
    token.write_text("secret\n")
    run = a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])
    return run.model_copy(update={"report": ReportTarget(url=url, token_file=str(token))})


def a_log() -> tuple[Log, io.StringIO]:
    stream = io.StringIO()
    return Log(stream=stream), stream


def test_the_last_report_has_everything_and_the_result(tmp_path: Path) -> None:
    log, _ = a_log()
    with reports_server() as server, Reporter(a_run_that_reports(tmp_path, server.url), Stage.TRAIN, log) as report:
        report.start(Activity.TRAINING)
        report.progress(Progress(percent=50, step=5, total_steps=10))
        report.row(HistoryRow(step=5, epoch=0.5, training_loss=2.0), Metrics(training_loss=2.0))
        report.finish(RESULT)
    last = server.reports[-1]
    assert last.result == RESULT
    assert last.activity is Activity.TRAINING
    assert last.progress is not None
    assert last.progress.step == 5
    assert [row.training_loss for row in last.history] == [2.0]
    assert set(server.tokens) == {"Bearer secret"}


SAVED = CheckpointStatus(step=5, uri="s3://b/checkpoints/step-5-abc", saved_at=datetime(2026, 1, 2, tzinfo=UTC))
BEST = BestStatus(step=4, validation_loss=0.5)


def test_an_attempt_that_goes_on_tells_the_curve_of_those_before_it_too(tmp_path: Path) -> None:
    log, _ = a_log()
    earlier = [HistoryRow(step=step, epoch=step / 10, training_loss=2.0) for step in (3, 4)]
    with reports_server() as server, Reporter(a_run_that_reports(tmp_path, server.url), Stage.TRAIN, log) as report:
        report.resume(earlier, Metrics(training_loss=2.0), Progress(step=5), BEST)
        report.checkpoint(SAVED)
        report.row(HistoryRow(step=6, epoch=0.6, training_loss=1.0), Metrics(training_loss=1.0), BEST)
        assert report.reached == {"checkpoint": SAVED, "best": BEST}
        report.finish(RESULT)
    last = server.reports[-1]
    assert [row.step for row in last.history] == [3, 4, 6]
    assert (last.checkpoint, last.best) == (SAVED, BEST)


def test_an_endpoint_of_a_private_authority_is_believed_where_the_order_names_it(tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_certificate(tmp_path, "server", "/CN=reports", "IP:127.0.0.1")
    log, stream = a_log()
    with reports_server(pki=tmp_path) as server:
        run = a_run_that_reports(tmp_path, server.url)
        assert run.report is not None
        trusting = run.report.model_copy(update={"ca_file": str(tmp_path / "ca.crt")})
        with Reporter(run, Stage.TRAIN, log) as report:
            report.finish(RESULT, tries=1)
        assert server.reports == []
        assert "CERTIFICATE_VERIFY_FAILED" in stream.getvalue()
        with Reporter(run.model_copy(update={"report": trusting}), Stage.TRAIN, log) as report:
            report.finish(RESULT)
        assert server.reports[-1].result == RESULT


def test_many_changes_make_few_reports(tmp_path: Path) -> None:
    log, _ = a_log()
    with reports_server() as server, Reporter(a_run_that_reports(tmp_path, server.url), Stage.TRAIN, log) as report:
        for step in range(500):
            report.progress(Progress(step=step))
        report.finish(RESULT)
    assert len(server.reports) <= 3


def test_a_checkpoint_is_told_at_once(tmp_path: Path) -> None:
    """A pod that is gone a second later has its work counted."""
    log, _ = a_log()
    with reports_server() as server:
        with Reporter(a_run_that_reports(tmp_path, server.url), Stage.TRAIN, log, interval_seconds=600) as report:
            while not server.reports:
                pass
            report.checkpoint(SAVED)
            while not any(seen.checkpoint for seen in server.reports):
                pass
        assert len(server.reports) == 2


def test_news_are_sent_while_the_run_goes_on(tmp_path: Path) -> None:
    log, _ = a_log()
    with reports_server() as server:
        with Reporter(a_run_that_reports(tmp_path, server.url), Stage.TRAIN, log, interval_seconds=0.01) as report:
            report.start(Activity.TRAINING)
            while not any(seen.activity is Activity.TRAINING for seen in server.reports):
                pass
            report.finish(RESULT)
        assert server.reports[-1].result == RESULT


def test_the_result_is_sent_again_until_it_is_taken(tmp_path: Path) -> None:
    log, _ = a_log()
    with reports_server() as server, Reporter(a_run_that_reports(tmp_path, server.url), Stage.TRAIN, log) as report:
        server.refusals_left = 2
        report.finish(RESULT)
    assert server.reports[-1].result == RESULT


def test_an_endpoint_that_is_not_there_is_warned_about_once_and_stops_nothing(tmp_path: Path) -> None:
    log, stream = a_log()
    run = a_run_that_reports(tmp_path, "http://127.0.0.1:9/v1/progress")
    with Reporter(run, Stage.TRAIN, log) as report:
        report.progress(Progress(step=1))
        report.finish(RESULT)
    lines = [line for line in stream.getvalue().splitlines() if "warning" in line]
    assert len(lines) == 1
    assert "http://127.0.0.1:9/v1/progress" in lines[0]
    assert "secret" not in stream.getvalue()


def test_a_run_without_an_endpoint_only_logs(tmp_path: Path) -> None:
    log, stream = a_log()
    with Reporter(a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d"}]), Stage.TRAIN, log) as report:
        report.say("step 1/10", loss=1.5)
        report.finish(RESULT)
    assert stream.getvalue().endswith("step 1/10 loss 1.5\n")


def test_the_log_holds_no_control_characters_and_one_line_per_event() -> None:
    log, stream = a_log()
    log.say("row \x1b[31mred\x1b[0m\nnext")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_the_json_log_is_one_object_a_line() -> None:
    stream = io.StringIO()
    Log(as_json=True, stream=stream).say("step 1/10", loss=0.5, dev=None)
    line = json.loads(stream.getvalue())
    assert (line["message"], line["loss"], line["level"]) == ("step 1/10", 0.5, "info")
    assert "dev" not in line
