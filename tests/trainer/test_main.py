"""The command line: a real process reads the order, writes the result, and says by its exit code what went wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_api.names import ENV_LOG_FORMAT, Exit, FailureClass, Stage
from finetune_api.run import ReportTarget, RunResult, RunSpec
from finetune_trainer.__main__ import main, read_run
from finetune_trainer.errors import RunError, Termination

from tests.trainer.reports_server import reports_server
from tests.trainer.stories import a_story_run

COMMAND = [sys.executable, "-m", "finetune_trainer"]


def written(tmp_path: Path, run: RunSpec) -> Path:
    path = tmp_path / "run.json"
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    return path


def started(stage: str, path: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, stage, "--run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def result_in(text: str) -> RunResult:
    return RunResult.model_validate_json(text)


def reporting(tmp_path: Path, run: RunSpec, url: str) -> RunSpec:
    token = tmp_path / "token"
    token.write_text("secret")
    return run.model_copy(update={"report": ReportTarget(url=url, token_file=str(token))})


def test_both_stages_run_as_commands_and_report_over_http(tmp_path: Path) -> None:
    with reports_server() as server:
        told = a_story_run(tmp_path, tracking={"sinks": ["tensorboard"]})
        run = reporting(tmp_path, told, server.url).model_copy(
            update={"result_file": str(tmp_path / "result.json"), "threads": 1}
        )
        path = written(tmp_path, run)
        for stage in Stage:
            process = started(stage, path, **{ENV_LOG_FORMAT: "json", "FINETUNE_WRITER_ID": "feedbeef-0000"})
            _, log = process.communicate()
            assert process.returncode == 0, log
            assert all(json.loads(line)["message"] for line in log.splitlines())
            result = result_in((tmp_path / "result.json").read_text())
            assert result.stage is stage
            assert result.failure is None
            assert server.reports[-1].result == result
    assert result.artifact is not None
    assert result.artifact.uri.endswith("/artifacts/1-feedbeef")
    assert len(list((tmp_path / "out" / "tracking" / "1-feedbeef" / "tensorboard").iterdir())) == 1
    assert {report.stage for report in server.reports} == set(Stage)
    assert max(len(report.history) for report in server.reports) > 5


def test_sigterm_after_the_outcome_changes_neither_result_nor_exit_code(tmp_path: Path) -> None:
    """A named pipe holds the process where it writes its result, until somebody reads."""
    pipe = tmp_path / "result"
    os.mkfifo(pipe)
    with reports_server() as server:
        run = reporting(tmp_path, a_story_run(tmp_path), server.url).model_copy(update={"result_file": str(pipe)})
        (tmp_path / "data.jsonl").unlink()
        process = started("prepare", written(tmp_path, run))
        assert process.stderr is not None
        while "DatasetNotFound" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        _, log = process.communicate()
        with open(reader) as file:
            message = file.read()
        assert process.returncode == Exit.USER_ERROR, log
        assert "Traceback" not in log
        assert result_in(message).failure is not None
        assert server.reports[-1].result == result_in(message)


def test_sigterm_before_anything_began_exits_143(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def terminated(path: Path) -> RunSpec:
        raise Termination

    monkeypatch.setattr("finetune_trainer.__main__.read_run", terminated)
    assert main(["prepare", "--run", str(tmp_path / "run.json")]) == Exit.TERMINATED


SIGNALLING_IMPORT = """
import os, signal, sys
os.kill(os.getpid(), signal.SIGTERM)
sys.path.remove(os.path.dirname(__file__))
del sys.modules["argparse"]
import argparse
"""
"""A module that stands before the real one, and sends the signal while it is imported."""


def test_sigterm_while_modules_are_imported_is_not_lost(tmp_path: Path) -> None:
    """For the first process of a container the kernel drops what is neither handled nor held back."""
    (tmp_path / "argparse.py").write_text(SIGNALLING_IMPORT)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = started("prepare", tmp_path / "run.json", PYTHONPATH=path)
    _, log = process.communicate()
    assert (process.returncode, "before it began" in log) == (Exit.TERMINATED, True), log


@pytest.mark.parametrize("why", ["no folder", "no message"])
def test_a_result_that_cannot_be_written_is_reported_and_leaves_the_exit_code(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_message(self: RunResult) -> str:
        raise ValueError("too long")

    if why == "no message":
        monkeypatch.setattr(RunResult, "to_message", no_message)
    with reports_server() as server:
        run = reporting(tmp_path, a_story_run(tmp_path), server.url)
        run = run.model_copy(update={"result_file": str(tmp_path / "nowhere" / "result")})
        (tmp_path / "data.jsonl").unlink()
        assert main(["prepare", "--run", str(written(tmp_path, run))]) == Exit.USER_ERROR
        result = server.reports[-1].result
    assert result is not None
    assert result.failure is not None
    assert result.failure.reason == "DatasetNotFound"
    assert "the result cannot be written" in capsys.readouterr().err


def test_a_run_file_that_is_not_there_is_one_line_and_exit_42(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--run", str(tmp_path / "none.json")]) == Exit.USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "none.json cannot be read: No such file" in lines[0]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"identity": None}, "identity"),
        ({"attempt": 0}, "attempt: Input should be greater than or equal to 1"),
        ({"unknownField": 1}, "unknownField"),
        ({"outputUri": "file:///home/jörg"}, "outputUri: String should match pattern"),
    ],
)
def test_a_wrong_run_file_names_the_field(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    run = a_story_run(tmp_path).model_dump(mode="json", by_alias=True, exclude_none=True)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run | change))
    with pytest.raises(RunError, match=where) as caught:
        read_run(path)
    assert caught.value.reason == "RunFileInvalid"


def test_a_users_mistake_is_a_failure_without_a_stack_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_story_run(tmp_path)
    (tmp_path / "data.jsonl").unlink()
    assert main(["prepare", "--run", str(written(tmp_path, run))]) == Exit.USER_ERROR
    streams = capsys.readouterr()
    failure = result_in(streams.out).failure
    assert failure is not None
    assert "data.jsonl" in failure.message
    assert failure.remedy
    assert "Traceback" not in streams.err


@pytest.mark.parametrize(
    ("pattern", "words"), [("no group", "0 groups"), ("(a)(b)", "2 groups"), ("#### (", "is not a regular expression")]
)
def test_a_wrong_answer_pattern_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str, words: str
) -> None:
    run = a_story_run(tmp_path, evaluation={"metrics": ["exactMatch"], "answerPattern": pattern})
    (tmp_path / "data.jsonl").unlink()
    assert main(["prepare", "--run", str(written(tmp_path, run))]) == Exit.USER_ERROR
    failure = result_in(capsys.readouterr().out).failure
    assert failure is not None
    assert (failure.failure_class, failure.reason) == (FailureClass.INVALID_CONFIG, "AnswerPatternInvalid")
    assert words in failure.message


def test_train_without_prepared_data_is_no_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--run", str(written(tmp_path, a_story_run(tmp_path)))]) == Exit.INFRASTRUCTURE
    failure = result_in(capsys.readouterr().out).failure
    assert failure is not None
    assert failure.reason == "PreparedDataUnusable"
