"""Whole runs with real pods and a real S3: what a user applies, and what they are left with."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.e2e.installed import BUCKET, NAMESPACE, Product

pytestmark = pytest.mark.cluster


def test_a_run_ends_with_a_tested_artifact_in_s3(runs: Product) -> None:
    status = runs.ended("straight")
    assert status["phase"] == "Succeeded", runs.story("straight")
    manifest = runs.read_json(status["artifact"]["manifestUri"])
    assert len(manifest["files"]) == status["artifact"]["files"]
    for file in manifest["files"]:
        key = f"{status['artifact']['uri'].removeprefix(f's3://{BUCKET}/').rstrip('/')}/{file['name']}"
        content = runs.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"]), file["name"]
    assert status["evaluation"]["perplexity"]["tuned"] < status["evaluation"]["perplexity"]["base"]
    assert status["progress"]["percent"] == 100
    assert (
        status["data"]["rows"]["train"] + status["data"]["rows"]["dev"] + status["data"]["dropped"]["duplicate"] == 24
    )


def test_the_progress_of_a_run_is_told_while_it_runs(runs: Product) -> None:
    status = runs.ended("straight")
    assert [row["step"] for row in status["history"]] == sorted({row["step"] for row in status["history"]})
    assert any("trainingLoss" in row for row in status["history"])
    assert status["effectiveHyperparameters"]["learningRate"] == 0.01
    assert status["resolved"]["trainableParameters"] < status["resolved"]["parameters"]


def test_the_published_adapter_answers_as_the_run_said_it_would(runs: Product, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    status = runs.ended("straight")
    prefix = status["artifact"]["uri"].removeprefix(f"s3://{BUCKET}/").rstrip("/") + "/"
    for folder, start in {"artifact": prefix, "base": "base/"}.items():
        (tmp_path / folder).mkdir()
        for item in runs.s3.list_objects_v2(Bucket=BUCKET, Prefix=start)["Contents"]:
            runs.s3.download_file(BUCKET, item["Key"], str(tmp_path / folder / item["Key"].rpartition("/")[2]))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "artifact")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    samples = [json.loads(line) for line in (tmp_path / "artifact" / "samples.jsonl").read_text().splitlines()]
    assert samples
    for sample in samples:
        ids = tokenizer(sample["prompt"], return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == sample["tuned"]


def test_a_full_run_on_rows_from_a_configmap_publishes_the_whole_model(runs: Product) -> None:
    status = runs.ended("full")
    assert status["phase"] == "Succeeded", runs.story("full")
    assert status["artifact"]["format"] == "model"
    assert status["resolved"]["trainableParameters"] == status["resolved"]["parameters"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("broken-data", "InvalidData", ["rows", "broken.jsonl", "line 3"]),
        ("no-file", "InvalidData", ["rows", f"s3://{BUCKET}/nowhere.jsonl"]),
        ("no-model", "InvalidConfig", [f"s3://{BUCKET}/nothing"]),
        ("wrong-keys", "AccessDenied", [f"s3://{BUCKET}/out/", "denied"]),
        ("no-secret", "AccessDenied", ["Secret e2e/absent", "AWS_ACCESS_KEY_ID"]),
    ],
)
def test_a_users_mistake_is_named_before_a_gpu_is_asked_for(
    runs: Product, name: str, kind: str, words: list[str]
) -> None:
    status = runs.ended(name)
    failure = status["failure"]
    assert (status["phase"], failure["class"]) == ("Failed", kind), runs.story(name)
    assert all(word in failure["message"] for word in words), failure["message"]
    assert "\n" not in failure["message"]
    assert failure["remedy"]
    _nothing_is_left(runs, name)


def test_an_s3_that_does_not_answer_holds_the_run_with_its_address(runs: Product) -> None:
    status = runs.ended("no-s3")
    assert (status["phase"], status["failure"]["class"]) == ("Suspended", "Infrastructure"), runs.story("no-s3")
    assert "http://s3.s3.svc:9" in status["failure"]["message"]
    _nothing_is_left(runs, "no-s3")


def _nothing_is_left(runs: Product, name: str) -> None:
    selector = f"finetune-operator.io/name={name}"
    jobs = runs.kubectl.get("jobs", "-n", NAMESPACE, "-l", selector)["items"]
    assert [job["metadata"]["labels"]["finetune-operator.io/stage"] for job in jobs] == ["prepare"]
    pods = runs.kubectl.get("pods", "-n", NAMESPACE, "-l", selector)["items"]
    assert [pod["status"]["phase"] for pod in pods] == ["Failed"]
    assert runs.published_by(name) == []


def test_the_operator_stays_small(runs: Product) -> None:
    path = "/api/v1/namespaces/finetune-operator/services/finetune-operator:http/proxy/metrics"
    lines = runs.kubectl("get", "--raw", path).splitlines()
    resident = next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes "))
    assert 0 < resident < 120 * 2**20, f"{resident / 2**20:.0f} MiB"
