"""Rows 37 and 39, rule E, acceptance cases 15 and 16: an artifact is loaded again, answers and is measured."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import LOCK_FILE, Exit
from finetune_api.run import StorageAccess
from finetune_trainer.__main__ import main
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.fetch import StoredModel
from finetune_trainer.log import Log
from finetune_trainer.restore import Reach
from finetune_trainer.speaker import Speaker, load_speaker
from finetune_trainer.store import Store, open_store

from tests.trainer.runs import write_jsonl
from tests.trainer.s3_access import an_access, make_bucket
from tests.trainer.stories import HIDDEN, Story, a_story_run, capital_rows, tell
from tests.trainer.tiny import BOS, a_model_folder

METHODS: dict[str, dict[str, Any]] = {
    "nf4": {"method": {"type": "lora", "quantization": "nf4"}},
    "full": {"method": {"type": "full"}},
}
TEMPLATES = {"promptTemplate": "<<prompt>> -> ", "completionTemplate": "<<completion>>"}
CPU = Compute(torch.device("cpu"), torch.float32)

TOKENIZER_CODE = """
from transformers import PreTrainedTokenizerFast


class Own(PreTrainedTokenizerFast):
    pass
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", params=METHODS)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A run with a template, of a model with a begin token."""
    folder = tmp_path_factory.mktemp(request.param)
    model = a_model_folder(folder / "model", begin_token=True, hidden=HIDDEN)
    evaluation = {"metrics": ["perplexity", "exactMatch", "rougeL"], "rows": 0}
    return tell(a_story_run(folder, model, evaluation=evaluation, **TEMPLATES, **METHODS[request.param]))


@pytest.fixture(scope="module")
def speaker(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return loaded(story.artifact, tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """One command in this process: exit code, what it printed, and its log."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["generate" if arguments[0] is None else "evaluate", *map(str, arguments[1:])])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def loaded(place: Path | str, scratch: Path, storage: StorageAccess | None = None) -> Speaker:
    return load_speaker(str(place), Reach(storage or StorageAccess(), None, scratch), CPU, Log(stream=io.StringIO()))


def uploaded(folder: Path, uri: str, access: StorageAccess) -> Store:
    """The files of a folder, in S3."""
    store = open_store(uri, access)
    for path in folder.iterdir():
        store.put_file(path.name, path)
    return store


def samples_of(story: Story) -> list[dict[str, str]]:
    return [json.loads(line) for line in (story.artifact / "samples.jsonl").read_text().splitlines()]


def test_a_text_comes_back_as_a_text_and_a_list_as_a_list_in_order(speaker: Speaker) -> None:
    prompts = ["a= -> ", "quite a long one: b= -> ", "c="]
    each = [speaker.answer(prompt) for prompt in prompts]
    assert [type(answer) for answer in each] == [str] * 3
    assert speaker.answer(prompts) == each
    assert speaker.answer(prompts[::-1]) == each[::-1]
    assert speaker.answer([]) == []


def test_templates_and_settings_of_the_run_are_there_again(story: Story, speaker: Speaker) -> None:
    given = story.run.training
    assert speaker.restored.spec.training.model_copy(update={"model": given.model}) == given
    assert speaker.restored.spec.identity == story.run.identity


def test_a_row_is_asked_by_its_prompt_alone(story: Story, speaker: Speaker) -> None:
    file = write_jsonl(story.artifact.parents[1] / "rows.jsonl", capital_rows("=", "ab"))
    [first, _] = speaker.prompts(str(file), None).references
    assert first.prompt == "a= -> "
    tokenizer = speaker.tokenizer.tokenizer
    assert first.prompt_ids == [tokenizer.token_to_id(token) for token in [BOS, *"a= -> "]]
    assert first.prompt_ids == speaker.tokenizer.prompt_ids("a= -> ") == speaker.tokenizer.prompt_ids(f"{BOS}a= -> ")


def test_an_artifact_is_measured_as_its_run_measured_it(story: Story, run: Run) -> None:
    test = story.artifact.parents[2] / "test.jsonl"
    code, out, _ = run("evaluate", "--artifact", story.artifact, "--dataset", test, "--as", "test", "--json", "--cpu")
    assert code == Exit.OK
    found = json.loads(out)
    assert story.result.evaluation is not None
    wanted = {str(metric): both.tuned for metric, both in story.result.evaluation.measured().items()}
    assert [found.pop(name) for name in ("rows", "generatedRows", "emptyRows")] == [4, 4, 0]
    assert found == pytest.approx(wanted)


def test_a_row_without_reference_is_answered_and_not_measured(
    story: Story, speaker: Speaker, tmp_path: Path, run: Run
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "b=", "completion": ""}, *capital_rows("=", "a")])
    assert [reference.prompt for reference in speaker.prompts(str(file), None).references] == ["b= -> ", "a= -> "]
    arguments = ("--dataset", file, "--metrics", "perplexity", "--cpu")
    code, out, _ = run("evaluate", "--artifact", story.artifact, *arguments)
    assert (code, out.splitlines()[-1]) == (Exit.OK, "1 rows; 1 of them generated; 1 more without a reference")


@pytest.mark.parametrize("number", [("--rows", "-3"), ("--rows", "2.5")])
def test_a_number_that_is_none_ends_the_command_before_anything_is_loaded(
    number: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--artifact", "/nowhere", "--dataset", "rows.jsonl", *number])
    assert f"{number[1]} is no whole number from 0 to 4294967295" in capsys.readouterr().err


def test_an_artifact_may_lie_in_a_folder_of_any_name(story: Story, run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(story.artifact, tmp_path / "Größe 2")
    code, out, _ = run(None, "--artifact", folder, "--max-new-tokens", 1, "--cpu", "a=")
    assert (code, len(out.strip()) <= 1) == (Exit.OK, True)


def test_other_metrics_and_fewer_rows_can_be_asked_for(story: Story, run: Run) -> None:
    test = story.artifact.parents[2] / "test.jsonl"
    arguments = ("--dataset", test, "--metrics", "accuracy,macroF1", "--rows", 2, "--cpu")
    code, out, _ = run("evaluate", "--artifact", story.artifact, *arguments)
    assert code == Exit.OK
    assert [line.split()[0] for line in out.splitlines()] == ["accuracy", "macro", "4"]
    assert out.endswith("4 rows; 2 of them generated\n")


def test_texts_and_rows_are_answered_on_the_command_line(story: Story, run: Run) -> None:
    first, second, *_ = samples_of(story)
    prompts = [first["prompt"], second["prompt"]]
    place = ("--artifact", story.artifact, "--cpu", "--json")
    assert json.loads(run(None, *place, prompts[0])[1]) == first["tuned"]
    assert json.loads(run(None, *place, *prompts)[1]) == [first["tuned"], second["tuned"]]
    file = write_jsonl(story.artifact.parents[2] / "two.jsonl", capital_rows("=", "ab"))
    assert json.loads(run(None, *place, "--dataset", file)[1]) == [
        {"row": number, "prompt": each["prompt"], "reference": each["reference"], "text": each["tuned"]}
        for number, each in enumerate([first, second])
    ]
    assert len(json.loads(run(None, *place, "--max-new-tokens", 1, prompts[0])[1])) <= 1


@pytest.mark.parametrize("story", ["nf4"], indirect=True)
def test_a_real_process_answers_each_line_of_its_standard_input(story: Story) -> None:
    samples = samples_of(story)[:2]
    command = [sys.executable, "-m", "finetune_trainer", "generate", "--artifact", str(story.artifact), "--cpu"]
    lines = "".join(f"{sample['prompt']}\n" for sample in samples)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert done.stdout.splitlines() == [sample["tuned"] for sample in samples]


@pytest.mark.parametrize("story", ["nf4"], indirect=True)
def test_an_adapter_and_its_base_in_s3_are_restored_with_keys_of_a_folder(
    story: Story, s3: Any, tmp_path: Path, run: Run
) -> None:
    access = an_access(tmp_path, s3)
    make_bucket(access, "restore")
    lock = json.loads((story.artifact / LOCK_FILE).read_text())
    base = uploaded(Path(lock["base"]["uri"].removeprefix("file://")), "s3://restore/base", access)
    artifact = uploaded(story.artifact, "s3://restore/artifact", access)
    lock["base"] = {"uri": base.uri, "revision": StoredModel(base).revision}
    artifact.put_bytes(LOCK_FILE, json.dumps(lock).encode())
    first = samples_of(story)[0]
    arguments = ("--endpoint", s3.endpoint, "--credentials", tmp_path / "keys", "--cpu", first["prompt"])
    code, out, log = run(None, "--artifact", artifact.uri, *arguments)
    assert (code, out) == (Exit.OK, f"{first['tuned']}\n"), log


@pytest.mark.parametrize("story", ["full"], indirect=True)
def test_code_that_came_with_a_model_runs_only_where_the_caller_says_so_too(
    story: Story, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(story.artifact, tmp_path, dirs_exist_ok=True)
    lock = json.loads((tmp_path / LOCK_FILE).read_text())
    lock["training"]["model"]["trustRemoteCode"] = True
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock))
    (tmp_path / "tokenization_own.py").write_text(TOKENIZER_CODE)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "tokenization_own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | own))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code, _, log = run(None, "--artifact", tmp_path, "--cpu", "a")
    assert (code, "RemoteCodeForbidden" in log, "--trust-remote-code" in log) == (Exit.USER_ERROR, True, True)
    assert run(None, "--artifact", tmp_path, "--cpu", "--trust-remote-code", "a")[0] == Exit.OK


@pytest.mark.parametrize("story", ["full"], indirect=True)
def test_a_runs_root_means_its_artifact_and_a_chats_date_is_the_runs(story: Story, tmp_path: Path) -> None:
    root = story.artifact.parents[1]
    assert loaded(root, tmp_path / "1").restored.spec.training.model.uri == f"file://{story.artifact}"
    shutil.copytree(story.artifact, tmp_path / "dated")
    lock = json.loads((tmp_path / "dated" / LOCK_FILE).read_text())
    assert lock["templateDate"] is None
    (tmp_path / "dated" / LOCK_FILE).write_text(json.dumps(lock | {"templateDate": "2026-01-31"}))
    assert loaded(tmp_path / "dated", tmp_path / "2").restored.template_date == date(2026, 1, 31)


@pytest.mark.parametrize("story", ["nf4"], indirect=True)
def test_an_adapter_on_another_base_than_its_own_is_refused(story: Story, tmp_path: Path, run: Run) -> None:
    shutil.copytree(story.artifact, tmp_path, dirs_exist_ok=True)
    lock = json.loads((tmp_path / LOCK_FILE).read_text())
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock | {"base": lock["base"] | {"revision": "sha256:other"}}))
    code, _, log = run(None, "--artifact", tmp_path, "--cpu", "a")
    assert (code, "ModelChanged" in log, "sha256:other" in log) == (Exit.USER_ERROR, True, True)


@pytest.mark.parametrize("story", ["nf4"], indirect=True)
def test_an_adapter_that_was_cut_short_is_told(story: Story, tmp_path: Path, run: Run) -> None:
    shutil.copytree(story.artifact, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, log = run(None, "--artifact", tmp_path, "--cpu", "a")
    assert (code, "AdapterInvalid" in log, "Traceback" in log) == (Exit.USER_ERROR, True, False)


MISTAKES: dict[str, tuple[list[str], str, int]] = {
    "both texts and a dataset": (["a", "--dataset", "rows.jsonl"], "both texts and --dataset", 42),
    "no text and no dataset": ([], "neither texts nor --dataset", 42),
    "a folder without lock file": (["a"], "holds no run.lock.json, so it is no artifact", 42),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_call_is_one_line_and_an_exit_code(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    arguments, words, wanted = MISTAKES[mistake]
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code, out, log = run(None, "--artifact", tmp_path, "--cpu", *arguments)
    assert (code, out, len(log.splitlines())) == (wanted, "", 1)
    assert words in log


@pytest.mark.parametrize("place", ["Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B"])
def test_a_name_of_the_hub_is_no_artifact(place: str, run: Run) -> None:
    code, _, log = run(None, "--artifact", place, "--cpu", "a")
    assert code == Exit.USER_ERROR
    assert "NoLockFile" in log or "UriUnsupported" in log


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "cannot be read"), ("{", "cannot be read"), ('{"base": {}, "run": {}}', "'training'")]
)
def test_a_lock_file_that_is_none_is_told(tmp_path: Path, run: Run, text: str, words: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    code, _, log = run(None, "--artifact", tmp_path, "--cpu", "a")
    assert (code, "LockFileInvalid" in log, words in log) == (Exit.USER_ERROR, True, True)


def test_an_unknown_metric_and_an_unknown_dataset_name_what_there_is(story: Story, run: Run) -> None:
    place = ("--artifact", story.artifact, "--dataset", story.artifact.parents[2] / "test.jsonl", "--cpu")
    code, _, log = run("evaluate", *place, "--metrics", "bleu")
    assert (code, "bleu" in log, "rougeL" in log) == (Exit.USER_ERROR, True, True)
    code, _, log = run("evaluate", *place, "--as", "nobody")
    assert (code, "'data', 'test', 'dev'" in log) == (Exit.USER_ERROR, True)


@pytest.mark.parametrize(("prompt", "words"), [([], "prompt 1 is empty"), ([5] * 256, "the model's limit is 256")])
def test_a_prompt_that_cannot_be_continued_is_refused(speaker: Speaker, prompt: list[int], words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        speaker.continued([prompt])
    assert caught.value.reason == "PromptInvalid"


def test_a_prompt_of_other_bytes_is_refused(speaker: Speaker) -> None:
    with pytest.raises(RunError, match="PromptInvalid: prompt 2 is not UTF-8, at its character 4"):
        speaker.answer(["a", os.fsdecode(b"caf\xe9")])


def test_a_wrong_row_is_told_with_file_and_line(story: Story, run: Run, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a=", "completion": "A"}, {"prompt": "b="}])
    code, _, log = run("evaluate", "--artifact", story.artifact, "--dataset", file, "--cpu")
    assert (code, f"{file}, line 2" in log, "completion" in log) == (Exit.USER_ERROR, True, True)
