"""Acceptance cases 14 and 16: what is published loads with plain libraries and says what the run's samples say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.metrics import METRICS, Metric
from finetune_api.names import LOCK_FILE, MANIFEST_FILE, FailureClass, Stage
from finetune_api.run import StorageAccess
from finetune_trainer import forms
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.log import Log
from finetune_trainer.model import merged_model
from finetune_trainer.restore import Reach
from finetune_trainer.speaker import load_speaker
from finetune_trainer.store import open_store
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.trainer.stories import HIDDEN, Story, a_story_run, tell
from tests.trainer.tiny import a_model_folder

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"type": "full"}},
    "lora": {"method": {"type": "lora"}},
    "merged": {"method": {"type": "lora"}, "output": {"uri": "s3://unused/models", "artifact": "merged"}},
    "int8": {"method": {"type": "lora", "quantization": "int8"}},
    "nf4": {"method": {"type": "lora", "quantization": "nf4"}},
    "nf4-both": {
        "method": {"type": "lora", "quantization": "nf4"},
        "output": {"uri": "s3://unused/models", "artifact": "both"},
    },
}
QUANTIZATION = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
}


@pytest.fixture(scope="module", params=METHODS)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One run of each method."""
    return tell(a_story_run(tmp_path_factory.mktemp(request.param), **METHODS[request.param]))


def method_of(story: Story) -> str:
    method = story.run.training.method
    return method.quantization if method.quantization != "none" else str(method.type)


def plainly_loaded(story: Story):  # type: ignore[no-untyped-def]
    """As a user loads it: transformers, and PEFT where it is an adapter."""
    folder = story.artifact
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder)
    base = json.loads((folder / LOCK_FILE).read_text())["base"]["uri"].removeprefix("file://")
    quantization = QUANTIZATION.get(method_of(story))
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder)


def samples_of(story: Story) -> list[dict[str, str]]:
    return [json.loads(line) for line in (story.artifact / "samples.jsonl").read_text().splitlines()]


def test_the_artifact_loads_plainly_and_says_what_the_samples_say(story: Story) -> None:
    model, tokenizer = plainly_loaded(story), AutoTokenizer.from_pretrained(story.artifact)
    samples = samples_of(story)
    assert len(samples) == 3
    for sample in samples:
        ids = tokenizer(sample["prompt"], return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == sample["tuned"]


def test_the_commands_load_it_and_it_answers_and_measures_the_same(story: Story, tmp_path: Path) -> None:
    """`generate` and `evaluate` over each form and method, as on the command line."""
    reach = Reach(StorageAccess(), None, tmp_path)
    speaker = load_speaker(str(story.artifact), reach, Compute(torch.device("cpu"), torch.float32), Log())
    samples, rows = samples_of(story), story.artifact.parents[2] / "test.jsonl"
    assert speaker.answer([sample["prompt"] for sample in samples]) == [sample["tuned"] for sample in samples]
    found = speaker.measure(str(rows), "test", story.run.training.evaluation).values
    evaluation = story.result.evaluation
    assert evaluation is not None
    wanted = {metric: both.tuned for metric, both in evaluation.measured().items()}
    assert found == pytest.approx(wanted, rel=1e-5)  # What is published has six digits.


def test_the_tuned_model_is_better_than_the_base_on_the_same_rows(story: Story) -> None:
    evaluation = story.result.evaluation
    assert evaluation is not None
    assert evaluation.perplexity is not None
    assert evaluation.perplexity.tuned is not None
    assert evaluation.perplexity.base is not None
    assert evaluation.perplexity.tuned < 0.7 * evaluation.perplexity.base
    assert evaluation.exact_match is not None
    assert evaluation.exact_match.base == 0.0
    assert (evaluation.rows, evaluation.generated_rows) == (4, 3)


def test_the_artifact_is_complete_and_holds_no_pickle(story: Story) -> None:
    names = {path.name for path in story.artifact.rglob("*") if path.is_file()}
    papers = {
        "README.md",
        LOCK_FILE,
        "evaluation.json",
        "report.html",
        "samples.jsonl",
        "plan.json",
        "training_log.jsonl",
        "generation_config.json",
    }
    weights = "adapter_model.safetensors" if "adapter_config.json" in names else "model.safetensors"
    assert papers | {weights, "tokenizer.json", "tokenizer_config.json"} <= names
    assert {Path(name).suffix for name in names} <= {".html", ".json", ".jsonl", ".md", ".safetensors"}


def test_the_plan_is_in_the_result_the_artifact_and_the_log(story: Story) -> None:
    plan = story.result.plan
    assert plan is not None
    assert plan.estimated_bytes is not None
    written = json.loads((story.artifact / "plan.json").read_text())
    assert set(written.pop("reasons")) <= {*written, "estimatedBytes"}
    assert written == plan.to_json()
    assert re.search(r"plan: precision +float32 +a CPU computes in fp32\n", story.log)


def test_of_both_forms_the_merged_one_loads_plainly_and_says_what_its_samples_say(story: Story) -> None:
    folder = story.artifact / "merged"
    assert folder.exists() is (story.run.training.output.artifact == "both")
    if not folder.exists():
        return
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for sample in samples_of(story):
        ids = tokenizer(sample["prompt"], return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == sample["merged"]
    assert story.result.evaluation is not None
    perplexity = story.result.evaluation.perplexity
    assert perplexity is not None
    assert perplexity.merged is not None
    assert perplexity.merged != perplexity.tuned, "merging a 4-bit run changes what it says"
    assert "/merged" in (story.artifact / "README.md").read_text()


def test_a_merge_that_changes_the_model_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(forms, "merged_model", lambda adapted, dtype: scaled(merged_model(adapted, dtype)))
    run = a_story_run(tmp_path, **METHODS["merged"])
    with pytest.raises(RunError, match="the model once merged is another") as caught:
        tell(run)
    assert (caught.value.failure_class, caught.value.reason) == ("Infrastructure", "ArtifactMismatch")
    assert open_store(run.output_uri, run.storage).head(MANIFEST_FILE) is None


@torch.no_grad()
def scaled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with other weights."""
    for parameter in model.parameters():
        parameter.mul_(1.1)
    return model


def test_no_path_of_the_scratch_space_is_published(story: Story) -> None:
    for path in story.artifact.iterdir():
        if path.suffix not in ("", ".safetensors"):
            assert story.run.scratch_directory not in path.read_text(), path.name


def test_base_settings_and_templates_are_recorded(story: Story) -> None:
    lock = json.loads((story.artifact / LOCK_FILE).read_text())
    resolved = story.run.resolved
    assert lock["base"] == {"uri": resolved.model_uri, "revision": resolved.model_revision}
    assert lock["training"] == story.run.training.to_json()
    assert lock["effectiveHyperparameters"]["learningRate"] == 1e-2
    assert lock["quantization"] == story.run.training.method.quantization
    assert {dataset["name"] for dataset in lock["datasets"]} == {"data", "test", "dev"}


def test_the_manifest_lists_every_published_file(story: Story) -> None:
    store = open_store(story.run.output_uri, story.run.storage)
    manifest = json.loads(store.get_bytes(MANIFEST_FILE))
    assert sorted(file["name"] for file in manifest["files"]) == sorted(
        path.relative_to(story.artifact).as_posix() for path in story.artifact.rglob("*") if path.is_file()
    )


def test_a_second_attempt_returns_the_published_result_without_training(story: Story) -> None:
    again = tell(story.run.model_copy(update={"attempt": 2}), writer="another-one")
    assert again.result == story.result
    assert "published already" in again.log
    assert "step" not in again.log


def test_the_training_log_has_losses_of_training_and_dev_rows(story: Story) -> None:
    rows = [json.loads(line) for line in (story.artifact / "training_log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 60
    assert [row["step"] for row in rows if "validationLoss" in row] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["trainingLoss"] < rows[0]["trainingLoss"]
    assert [row["step"] for row in rows if "evaluationSeconds" in row] == [10, 20, 30, 40, 50, 60]
    flops = [row["flops"] for row in rows]
    assert flops == sorted(set(flops))
    assert story.result.metrics is not None
    assert story.result.metrics.training_loss == rows[-1]["trainingLoss"]


def test_an_adapter_artifact_is_a_base_like_any_other(tmp_path: Path) -> None:
    first = tell(a_story_run(tmp_path / "first"))
    folder = str(first.artifact)
    short = {"epochs": 1, "learningRate": 1e-6, "loggingSteps": 1}
    second = tell(a_story_run(tmp_path / "second", f"file://{folder}", hyperparameters=short))
    assert first.result.evaluation is not None
    assert second.result.evaluation is not None
    assert first.result.evaluation.perplexity is not None
    assert second.result.evaluation.perplexity is not None
    assert second.result.evaluation.perplexity.base == pytest.approx(first.result.evaluation.perplexity.tuned, rel=1e-4)
    lock = json.loads((second.artifact / LOCK_FILE).read_text())
    assert lock["base"] == json.loads((first.artifact / LOCK_FILE).read_text())["base"]
    assert lock["startedFrom"]["uri"] == f"file://{folder}"


def test_a_diverged_run_publishes_nothing(tmp_path: Path) -> None:
    model = a_model_folder(tmp_path / "model", hidden=HIDDEN)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    run = a_story_run(tmp_path, model)
    with pytest.raises(RunError) as caught:
        tell(run)
    assert caught.value.reason == "NotFinite"
    assert open_store(run.output_uri, run.storage).head(MANIFEST_FILE) is None
    assert open_store(run.output_uri, run.storage).list("artifacts") == []


def test_without_evaluation_rows_the_run_is_published_all_the_same(tmp_path: Path) -> None:
    run = a_story_run(tmp_path, hyperparameters={"epochs": 1, "trainBatchSize": 4})
    only_train = run.training.model_copy(update={"datasets": run.training.datasets[:1]})
    story = tell(run.model_copy(update={"training": only_train}))
    assert story.result.evaluation is not None
    assert (story.result.evaluation.rows, story.result.evaluation.perplexity) == (0, None)
    assert samples_of(story) == []
    assert story.result.stage is Stage.TRAIN


def test_every_metric_is_measured_and_shown_and_a_gate_that_is_passed_publishes(tmp_path: Path) -> None:
    metrics = [str(metric) for metric in Metric]
    gate = {"metric": "perplexity", "maximum": 1e6, "improves": True}
    evaluation = {"metrics": metrics, "rows": 0, "labels": ["A", "B", "C", "D"], "gate": gate}
    story = tell(a_story_run(tmp_path, evaluation=evaluation))
    measured = story.result.evaluation
    assert measured is not None
    assert list(measured.measured()) == list(Metric)
    assert measured.accuracy == measured.exact_match
    assert measured.macro_f1 is not None
    assert measured.macro_f1.base == 0.0
    told = json.loads((story.artifact / "evaluation.json").read_text())
    assert told == measured.to_json()
    assert set(metrics) < set(told)
    card = (story.artifact / "README.md").read_text()
    assert [facts.words for facts in METRICS.values() if f"| {facts.words} |" not in card] == []


def test_what_does_not_pass_the_gate_is_kept_and_not_published(tmp_path: Path) -> None:
    gate = {"metric": "perplexity", "maximum": 1}
    story = tell(a_story_run(tmp_path, evaluation={"metrics": ["perplexity"], "gate": gate}))
    store = open_store(story.run.output_uri, story.run.storage)
    assert store.head(MANIFEST_FILE) is None
    assert "artifacts/1-01234567/adapter_model.safetensors" in {item.key for item in store.list("artifacts")}
    assert story.result.artifact is None
    assert story.result.evaluation is not None
    assert story.result.failure is not None
    assert story.result.failure.failure_class is FailureClass.GATE_FAILED
    assert "perplexity of at most 1.0; the tuned model has" in story.result.failure.message
    assert f"{story.run.output_uri}/artifacts/1-01234567" in story.result.failure.message
