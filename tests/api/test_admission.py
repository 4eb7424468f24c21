"""What the API server admits and what it refuses, with which words: nobody needs a webhook to be protected."""

from typing import Any

import pytest
from finetune_api.metrics import Metric
from finetune_api.resource import FinetuneSpec
from finetune_api.training import Scheduler

from tests.api.conftest import ApiServer, Refusal
from tests.builders import a_body

pytestmark = pytest.mark.api_server

S3 = "s3://data/faq.jsonl"
DEV = {"name": "dev", "uri": S3, "role": "dev"}
TRAIN = {"name": "faq", "uri": S3}


def split(train: float, dev: float) -> dict[str, Any]:
    return {"split": {"trainPercentage": train, "devPercentage": dev}}


def numbers(**fields: Any) -> dict[str, Any]:
    return {"hyperparameters": fields}


def measured(gate: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """With rows to measure on."""
    return {"evaluation": fields | ({"gate": gate} if gate else {})} | split(80, 20)


def generation(**fields: Any) -> dict[str, Any]:
    return {"generation": fields}


def dataset(**fields: Any) -> dict[str, Any]:
    return {"datasets": [TRAIN | fields]}


def refusal(server: ApiServer, spec: dict[str, Any], name: str = "story") -> str:
    """What the API server says to a user who applies this."""
    with pytest.raises(Refusal) as refused:
        server.create(a_body(name, **spec))
    return str(refused.value)


ACCEPTED: dict[str, dict[str, Any]] = {
    "nothing but what is required": {},
    "split 100/0": split(100, 0),
    "split 80/20": split(80, 20),
    "split 60/20": split(60, 20),
    "split 0.5/0": split(0.5, 0),
    "split 33.3/66.7": split(33.3, 66.7),
    "numbers that aiX refuses": numbers(epochs=5, trainBatchSize=65, maxSeqLength=4097),
    "16 GPUs": {"trainer": {"gpusPerNode": 16}},
    "64 pods": {"trainer": {"nodes": 64}},
    "two pods without a GPU": {"trainer": {"nodes": 2, "gpusPerNode": 0}},
    "what a scheduler asks of pods": {
        "trainer": {
            "podLabels": {"queue": "root.default", "finetune-operator.io.example.com/name": "x"},
            "podAnnotations": {"kueue.x-k8s.io/podset-required-topology": "rack"},
        }
    },
    "an adapter's optimizer on two GPUs": {"trainer": {"gpusPerNode": 2}} | numbers(optimizer="adafactor"),
    "a fraction of an epoch": numbers(epochs=0.5),
    "the largest epochs": numbers(epochs=1000),
    "a warmup of zero steps": numbers(warmupSteps=0),
    "a warmup ratio with cosine": numbers(warmupRatio=0.03, scheduler="cosine"),
    "constant without warmup": numbers(scheduler="constant"),
    "evalSteps with a split": numbers(evalSteps=10) | split(80, 20),
    "evalSteps with a dev dataset": numbers(evalSteps=10) | {"datasets": [TRAIN, DEV]},
    "a plateau scheduler with dev rows": numbers(scheduler="reduce_lr_on_plateau") | split(80, 20),
    "early stopping with dev rows": numbers(earlyStopping={"patience": 1, "minDelta": 0.01}) | split(80, 20),
    "early stopping by default": numbers(earlyStopping={}) | {"datasets": [TRAIN, DEV]},
    "checkpoints every 5 steps": numbers(saveSteps=5, saveTotalLimit=1),
    "lora in 4 bits": {"method": {"quantization": "nf4"}},
    "lora on named modules": {"method": {"lora": {"targetModules": ["q_proj", "v_proj"]}}},
    "lora with its variants": {"method": {"lora": {"dora": True, "rslora": True, "modulesToSave": ["lm_head"]}}},
    "lora by a pattern": {"method": {"lora": {"targetModules": ["regex:.*attn.*"]}}},
    "full": {"method": {"type": "full"}},
    "a merged adapter": {"output": {"uri": "s3://out/models", "artifact": "merged"}},
    "both forms": {"output": {"uri": "s3://out/models", "artifact": "both"}},
    "no checksums": {"storage": {"checksums": "never"}},
    "three trackers": {"tracking": {"sinks": ["tensorboard", "mlflow", "wandb"], "wandb": {"project": "p"}}},
    "every metric": measured(metrics=list(Metric), labels=["yes", "no"], answerPattern="#### (.+)"),
    "a gate from below": measured({"metric": "exactMatch", "minimum": 0.5, "improves": True}, metrics=["exactMatch"]),
    "a gate from above": measured({"metric": "perplexity", "maximum": 4.5}),
    "a gate on test rows": {
        "evaluation": {"gate": {"metric": "perplexity", "improves": True}},
        "datasets": [TRAIN, DEV | {"role": "test"}],
    },
    "contrastive search": generation(penaltyAlpha=0.6, topK=4),
    "the k likeliest tokens": generation(doSample=True, topK=1),
    "sampling": {"generation": {"doSample": True, "temperature": 0.5, "topP": 0.9, "topK": 40}},
    "another Finetune as base": {"model": {"finetuneRef": {"name": "earlier"}}},
    "a revision of a hub model": {"model": {"uri": "hf://Qwen/Qwen3-0.6B", "revision": "main"}},
    "a model on a volume": {"model": {"uri": "pvc://weights/llama"}},
    "a dataset in a ConfigMap": dataset(uri="configmap://rows/train.jsonl"),
    "a dataset of the hub": dataset(uri="hf://openai/gsm8k/main/*.parquet", revision="0123456"),
    "a dataset by https": dataset(uri="https://data.example:8443/faq.jsonl?signature=x"),
    "a folder of parquet": dataset(uri="s3://data/faq/", format="parquet"),
    "chats beside pairs": {"datasets": [TRAIN, TRAIN | {"name": "talk", "type": "chat"}]},
    "a template beside chats": {
        "datasets": [TRAIN | {"promptTemplate": "<<q>>"}, TRAIN | {"name": "talk", "type": "chat"}]
    },
    "texts cut into windows": dataset(type="text") | numbers(overlong="split"),
    "dots inside of a name": dataset(uri="s3://data/a..b/faq.jsonl"),
    "an S3 endpoint": {"storage": {"endpoint": "http://s3.s3.svc:7070", "credentialsSecretRef": {"name": "s3"}}},
    "quantities as numbers and as text": {"trainer": {"cpu": 2, "memory": "16Gi", "gpusPerNode": 0}},
    "no retries": {"retryLimit": 0},
    "created suspended": {"suspend": True},
    "a queue with a priority": {"queue": {"name": "gpus", "priorityClassName": "high"}},
    "removed at once": {"ttlSecondsAfterFinished": 0},
    "another controller": {"managedBy": "example.com/another"},
}

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a selector for a value with a blank": (
        {"trainer": {"nodeSelector": {"gpu": "NVIDIA H100"}}},
        ["spec.trainer.nodeSelector.gpu"],
    ),
    "a label with a blank": ({"trainer": {"podLabels": {"team": "a b"}}}, ["spec.trainer.podLabels.team"]),
    "a class with two dots": ({"trainer": {"priorityClassName": "a..b"}}, ["spec.trainer.priorityClassName"]),
    "a toleration of nothing": (
        {"trainer": {"tolerations": [{"effect": "NoSchedule"}]}},
        ["spec.trainer.tolerations[0]", "without key needs operator Exists"],
    ),
    "a toleration that asks for two things": (
        {"trainer": {"tolerations": [{"key": "gpu", "operator": "Exists", "value": "x"}]}},
        ["operator Exists has no value"],
    ),
    "a toleration for a while of what evicts nobody": (
        {"trainer": {"tolerations": [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 9}]}},
        ["tolerationSeconds is only allowed with effect NoExecute"],
    ),
    "a toleration of no key": ({"trainer": {"tolerations": [{"key": "a b"}]}}, ["spec.trainer.tolerations[0].key"]),
    "no pod": ({"trainer": {"nodes": 0}}, ["spec.trainer.nodes", "greater than or equal to 1"]),
    "65 pods": ({"trainer": {"nodes": 65}}, ["spec.trainer.nodes", "less than or equal to 64"]),
    "an optimizer of whole tensors on two pods": (
        {"trainer": {"nodes": 2, "gpusPerNode": 0}, "method": {"type": "full"}} | numbers(optimizer="adafactor"),
        ["hyperparameters.optimizer", "trainer.nodes"],
    ),
    "an operator's label": (
        {"trainer": {"podLabels": {"finetune-operator.io/uid": "x"}}},
        ["trainer.podLabels may not set finetune-operator.io/*"],
    ),
    "a queue's label on a pod": (
        {"trainer": {"podLabels": {"kueue.x-k8s.io/queue-name": "x"}}},
        ["trainer.podLabels may not set", "kueue.x-k8s.io/queue-name"],
    ),
    "a Job controller's annotation": (
        {"trainer": {"podAnnotations": {"batch.kubernetes.io/job-completion-index": "0"}}},
        ["trainer.podAnnotations may not set", "batch.kubernetes.io/*"],
    ),
    # Acceptance case 1.
    "split 0/100": (split(0, 100), ["split.trainPercentage", "greater than 0"]),
    "split 0/0": (split(0, 0), ["split.trainPercentage", "greater than 0"]),
    "split 80/30": (split(80, 30), ["split.trainPercentage + split.devPercentage", "at most 100"]),
    "split -1/0": (split(-1, 0), ["spec.split.trainPercentage", "greater than or equal to 0"]),
    "split 50/-10": (split(50, -10), ["spec.split.devPercentage", "greater than or equal to 0"]),
    "split 100/1": (split(100, 1), ["split.trainPercentage + split.devPercentage", "at most 100"]),
    "split 101/0": (split(101, 0), ["spec.split.trainPercentage", "less than or equal to 100"]),
    # Acceptance case 9.
    "epochs as text": (numbers(epochs="3"), ["spec.hyperparameters.epochs", "number"]),
    "epochs as a boolean": (numbers(epochs=True), ["spec.hyperparameters.epochs", "number"]),
    "a rate as text": (numbers(learningRate="1e-4"), ["spec.hyperparameters.learningRate", "number"]),
    "a batch as text": (numbers(trainBatchSize="8"), ["spec.hyperparameters.trainBatchSize", "integer"]),
    "a batch as a boolean": (numbers(trainBatchSize=True), ["spec.hyperparameters.trainBatchSize", "integer"]),
    "a batch and a half": (numbers(trainBatchSize=1.5), ["spec.hyperparameters.trainBatchSize", "integer"]),
    "an unknown scheduler": (numbers(scheduler="fast"), ["spec.hyperparameters.scheduler", *Scheduler]),
    "epochs 0": (numbers(epochs=0), ["hyperparameters.epochs", "above 0"]),
    "epochs -1": (numbers(epochs=-1), ["hyperparameters.epochs", "0"]),
    "epochs 1001": (numbers(epochs=1001), ["hyperparameters.epochs", "1000"]),
    "batch 0": (numbers(trainBatchSize=0), ["hyperparameters.trainBatchSize", "1"]),
    "learning rate 0": (numbers(learningRate=0), ["hyperparameters.learningRate", "greater than 0"]),
    "both warmups": (numbers(warmupRatio=0.1, warmupSteps=10), ["warmupRatio and warmupSteps", "at most 1"]),
    "both warmups, both 0": (numbers(warmupRatio=0, warmupSteps=0), ["warmupRatio and warmupSteps", "at most 1"]),
    "a warmup with constant": (numbers(warmupSteps=5, scheduler="constant"), ["warmupSteps", "constant"]),
    "a warmup ratio of 1": (numbers(warmupRatio=1), ["warmupRatio", "less than 1"]),
    # Rules over several fields.
    "evalSteps without dev rows": (numbers(evalSteps=10), ["hyperparameters.evalSteps", "split.devPercentage"]),
    "early stopping without dev rows": (numbers(earlyStopping={}), ["hyperparameters.earlyStopping", "dev rows"]),
    "a patience of 0": (
        numbers(earlyStopping={"patience": 0}) | split(80, 20),
        ["spec.hyperparameters.earlyStopping.patience", "1"],
    ),
    "a negative minDelta": (
        numbers(earlyStopping={"minDelta": -0.1}) | split(80, 20),
        ["spec.hyperparameters.earlyStopping.minDelta", "0"],
    ),
    "no checkpoint kept": (numbers(saveTotalLimit=0), ["spec.hyperparameters.saveTotalLimit", "1"]),
    "saveSteps below 0": (numbers(saveSteps=-1), ["spec.hyperparameters.saveSteps", "0"]),
    "a plateau without dev rows": (numbers(scheduler="reduce_lr_on_plateau"), ["reduce_lr_on_plateau", "dev rows"]),
    "quantization without lora": ({"method": {"type": "full", "quantization": "nf4"}}, ["method.quantization", "lora"]),
    "adapters of a full run": ({"method": {"type": "full", "lora": {}}}, ["method.lora", "method.type lora"]),
    "MLflow's server without MLflow": (
        {"tracking": {"sinks": ["wandb"], "mlflow": {"trackingUri": "https://mlflow.test"}}},
        ["tracking.mlflow", "tracking.sinks"],
    ),
    "a tracker that there is not": ({"tracking": {"sinks": ["comet"]}}, ["spec.tracking.sinks", "comet"]),
    "a merged full run": (
        {"method": {"type": "full"}, "output": {"uri": "s3://out/models", "artifact": "merged"}},
        ["output.artifact", "method.type lora"],
    ),
    "a temperature without sampling": ({"generation": {"temperature": 0.5}}, ["generation.temperature", "doSample"]),
    "topP without sampling": (generation(topP=0.9), ["generation.temperature and topP", "doSample"]),
    "topK for nothing": (generation(topK=5), ["generation.topK", "doSample", "penaltyAlpha"]),
    "a penalty among one token": (generation(penaltyAlpha=0.6, topK=1), ["generation.penaltyAlpha", "at least 2"]),
    "a penalty without topK": (generation(penaltyAlpha=0.6), ["generation.penaltyAlpha", "topK of at least 2"]),
    "a penalty on samples": (generation(penaltyAlpha=0.6, topK=4, doSample=True), ["penaltyAlpha", "excludes"]),
    "a penalty of 1": (generation(penaltyAlpha=1, topK=4), ["generation.penaltyAlpha", "less than 1"]),
    "a temperature of 0": (generation(temperature=0, doSample=True), ["generation.temperature", "greater than 0"]),
    "a topP of 0": (generation(topP=0, doSample=True), ["generation.topP", "greater than 0"]),
    "a topP above 1": (generation(topP=1.1, doSample=True), ["spec.generation.topP", "1"]),
    "no tokens": (generation(maxNewTokens=0), ["spec.generation.maxNewTokens", "1"]),
    "an unknown metric": (measured(metrics=["bleu"]), ["spec.evaluation.metrics[0]", *Metric]),
    "labels for nothing": (measured(labels=["a", "b"]), ["evaluation.labels", "accuracy"]),
    "labels with blanks": (measured(metrics=["accuracy"], labels=["a", " b"]), ["spec.evaluation.labels[1]"]),
    "a pattern for nothing": (measured(answerPattern="(a)"), ["evaluation.answerPattern", "exactMatch"]),
    "a gate on what is not measured": (
        measured({"metric": "exactMatch", "minimum": 0.5}),
        ["evaluation.gate.metric", "evaluation.metrics"],
    ),
    "a gate that asks for nothing": (measured({"metric": "perplexity"}), ["evaluation.gate", "at least 1 of"]),
    "a least perplexity": (
        measured({"metric": "perplexity", "minimum": 0.5}),
        ["evaluation.gate.minimum", "perplexity", "evaluation.gate.maximum"],
    ),
    "a most of exactMatch": (
        measured({"metric": "exactMatch", "maximum": 1}, metrics=["exactMatch"]),
        ["evaluation.gate.maximum", "perplexity", "evaluation.gate.minimum"],
    ),
    "a share above 1": (
        measured({"metric": "exactMatch", "minimum": 50}, metrics=["exactMatch"]),
        ["spec.evaluation.gate.minimum", "1"],
    ),
    "a perplexity below 1": (
        measured({"metric": "perplexity", "maximum": 0.5}),
        ["spec.evaluation.gate.maximum", "1"],
    ),
    "a gate without rows": (
        {"evaluation": {"gate": {"metric": "perplexity", "maximum": 5}}},
        ["evaluation.gate", "split.devPercentage", "role test or dev"],
    ),
    "no base model": ({"model": {}}, ["model", "exactly 1 of uri and finetuneRef"]),
    "two base models": (
        {"model": {"uri": "s3://models/base", "finetuneRef": {"name": "earlier"}}},
        ["model", "exactly 1 of uri and finetuneRef"],
    ),
    "a revision of an S3 model": (
        {"model": {"uri": "s3://models/base", "revision": "main"}},
        ["model.revision", "hf:"],
    ),
    # Bounds.
    "an unknown method": ({"method": {"type": "qlora"}}, ["spec.method.type", "lora", "full"]),
    "a module to save twice": ({"method": {"lora": {"modulesToSave": ["a", "a"]}}}, ["modulesToSave", "Duplicate"]),
    "rank 0": ({"method": {"lora": {"rank": 0}}}, ["spec.method.lora.rank", "1"]),
    "dropout 1": ({"method": {"lora": {"dropout": 1}}}, ["lora.dropout", "less than 1"]),
    "no target modules": (
        {"method": {"lora": {"targetModules": []}}},
        ["spec.method.lora.targetModules", "at least 1"],
    ),
    "a target module twice": ({"method": {"lora": {"targetModules": ["q", "q"]}}}, ["targetModules", "Duplicate"]),
    "no datasets": ({"datasets": []}, ["spec.datasets", "at least 1"]),
    "17 datasets": ({"datasets": [TRAIN | {"name": f"d{n}"} for n in range(17)]}, ["spec.datasets", "16"]),
    "a dataset name twice": ({"datasets": [TRAIN, TRAIN]}, ["spec.datasets[1]", "Duplicate", "faq"]),
    "only dev rows": ({"datasets": [DEV]}, ["datasets", "role train"]),
    "an unknown format": (dataset(format="xml"), ["spec.datasets[0].format", "jsonl"]),
    "retryLimit 101": ({"retryLimit": 101}, ["spec.retryLimit", "100"]),
    "no time to start": ({"pendingDeadlineSeconds": 0}, ["spec.pendingDeadlineSeconds", "1"]),
    "no time to train": ({"activeDeadlineSeconds": 0}, ["spec.activeDeadlineSeconds", "1"]),
    "a time before the end": ({"ttlSecondsAfterFinished": -1}, ["spec.ttlSecondsAfterFinished", "0"]),
    "a priority without a queue": (
        {"queue": {"priorityClassName": "high"}},
        ["queue.priorityClassName", "queue.name"],
    ),
    "a queue that is no label": ({"queue": {"name": "no queue"}}, ["spec.queue.name"]),
    "a manager without a domain": ({"managedBy": "me"}, ["spec.managedBy"]),
    "17 GPUs": ({"trainer": {"gpusPerNode": 17}}, ["spec.trainer.gpusPerNode", "16"]),
    "an optimizer that cannot work on shards": (
        {"trainer": {"gpusPerNode": 2}, "method": {"type": "full"}} | numbers(optimizer="adafactor"),
        ["hyperparameters.optimizer", "trainer.gpusPerNode above 1"],
    ),
    "memory without a limit": ({"trainer": {"memory": "0Gi"}}, ["spec.trainer.memory", "more than 0"]),
    "memory below nothing": ({"trainer": {"memory": -1}}, ["spec.trainer.memory", "more than 0"]),
    "processors without a limit": ({"trainer": {"cpu": "0.0"}}, ["spec.trainer.cpu", "at least 1"]),
    "memory in words": ({"trainer": {"memory": "much"}}, ["spec.trainer.memory"]),
    "a misspelt field": ({"metod": {"type": "lora"}}, ["unknown field", "spec.metod"]),
    # Places that nobody may point at.
    "a dataset above its bucket": (dataset(uri="s3://data/../x.jsonl"), ["spec.datasets[0].uri", "'..'"]),
    "a model above its volume": ({"model": {"uri": "pvc://weights/../../etc"}}, ["spec.model.uri", "'..'"]),
    "an output above its bucket": ({"output": {"uri": "s3://out/.."}}, ["spec.output.uri", "'..'"]),
    "a dataset in the pod's files": (dataset(uri="file:///etc/passwd"), ["spec.datasets[0].uri"]),
    "a model in the pod's files": ({"model": {"uri": "file:///etc"}}, ["spec.model.uri"]),
    "a dataset by http": (dataset(uri="http://data.example/faq.jsonl"), ["spec.datasets[0].uri"]),
    "a dataset with a password": (dataset(uri="https://me:word@data.example/faq.jsonl"), ["spec.datasets[0].uri"]),
    "a revision of a file": (dataset(revision="main"), ["datasets[].revision", "hf://"]),
    "a chat with a template": (
        dataset(type="chat", promptTemplate="<<q>>"),
        ["datasets[].type chat and infix", "promptTemplate"],
    ),
    "an infix with a common template": (
        dataset(type="infix") | {"completionTemplate": "<<a>>"},
        ["promptTemplate and completionTemplate", "type chat and infix"],
    ),
    "an unknown row type": (dataset(type="image"), ["spec.datasets[0].type", "chat", "infix"]),
    "a cloud's metadata": (dataset(uri="http://169.254.169.254/latest"), ["spec.datasets[0].uri"]),
    "an output elsewhere": ({"output": {"uri": "http://169.254.169.254/x"}}, ["spec.output.uri"]),
    "an endpoint that is no web address": ({"storage": {"endpoint": "file:///etc"}}, ["spec.storage.endpoint"]),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_it_is_admitted(server: ApiServer, case: str) -> None:
    body = a_body(**ACCEPTED[case])
    assert server.create(body)["metadata"]["name"] == "story"


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_field_and_limit(server: ApiServer, case: str) -> None:
    spec, words = REFUSED[case]
    message = refusal(server, spec)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("missing", ["model", "datasets", "output"])
def test_what_is_required_is_missed_by_name(server: ApiServer, missing: str) -> None:
    body = a_body()
    del body["spec"][missing]
    with pytest.raises(Refusal, match=rf"spec\.{missing}: Required value"):
        server.create(body)


@pytest.mark.parametrize(
    ("name", "word"), [("a" * 41, "at most 40 characters"), ("1st", "start with a letter"), ("a.b", "hold only a-z")]
)
def test_a_name_that_makes_no_job_name_is_refused(server: ApiServer, name: str, word: str) -> None:
    assert word in refusal(server, {}, name)


def test_the_longest_name_is_admitted(server: ApiServer) -> None:
    assert server.create(a_body("a" * 40))["metadata"]["name"] == "a" * 40


PARTS: dict[str, dict[str, Any]] = {
    "nothing given": {},
    "parts given": {"method": {"lora": {"rank": 4}}, "trainer": {"gpusPerNode": 0}} | numbers(epochs=1) | split(80, 20),
}


@pytest.mark.parametrize("case", PARTS)
def test_the_api_server_fills_in_the_defaults_that_the_types_have(server: ApiServer, case: str) -> None:
    body = a_body(**PARTS[case])
    admitted = server.create(body)["spec"]
    assert without_empty(admitted) == without_empty(FinetuneSpec.model_validate(body["spec"]).to_json())


def without_empty(value: Any) -> Any:
    """The value without empty maps and lists, which mean the same as absent ones."""
    if isinstance(value, list):
        return [without_empty(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_empty(item) for key, item in value.items() if item not in ({}, [])}


def test_a_fresh_finetune_says_that_nobody_has_looked_yet(server: ApiServer) -> None:
    boast = {"status": {"observedGeneration": 1, "phase": "Succeeded"}}
    assert server.create(a_body() | boast)["status"] == {"observedGeneration": -1}
