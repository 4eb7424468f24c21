"""The artifact's model card and lock file: what it is, and everything needed to know where it came from. Pure."""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from finetune_api.findings import EvaluationStatus
from finetune_api.metrics import METRICS
from finetune_api.run import RunSpec

from finetune_trainer.data_files import public_uri
from finetune_trainer.fetch import ModelFiles
from finetune_trainer.prepared import PreparedIndex

LOCK_VERSION = 1
PACKAGES = ("finetune-operator", "torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors", "numpy")

WITH_ADAPTER = ("adapter", "both")
"""Forms whose folder is an adapter's."""

Json = dict[str, Any]


def public_name(files: ModelFiles) -> str:
    """What loaders should call a model: ORG/NAME for one of the hub, else its URI. Never a path of this machine."""
    return files.uri.removeprefix("hf://")


def lock_file(spec: RunSpec, files: ModelFiles, index: PreparedIndex, form: str, compute: Json) -> Json:
    """`run.lock.json`: base and revision, settings in force, templates, data digests and versions."""
    training = spec.training.to_json()
    training["model"]["uri"] = files.uri
    for dataset in training["datasets"]:
        dataset["uri"] = public_uri(dataset["uri"])
    return {
        "version": LOCK_VERSION,
        "run": {**spec.identity.to_json(), "attempt": spec.attempt},
        "format": form,
        "base": {"uri": files.model.uri, "revision": files.model.revision},
        "startedFrom": {"uri": files.uri, "revision": files.revision},
        "quantization": training["method"]["quantization"],
        "training": training,
        "trainingSha256": hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest(),
        "effectiveHyperparameters": index.effective_hyperparameters.to_json(),
        "resolved": index.resolved.to_json(),
        "datasets": [dataset.to_json() for dataset in index.datasets],
        "compute": compute,
        # Null where no row is a chat.
        "templateDate": index.template_date and index.template_date.isoformat(),
        "card": spec.card,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def run_facts(spec: RunSpec, files: ModelFiles, index: PreparedIndex, form: str) -> list[tuple[str, str]]:
    """Where the model came from and what was done, by name."""
    data, settings = index.data, index.effective_hyperparameters
    return [
        ("Base model", f"{files.model.uri} at {files.model.revision}"),
        *([("Started from", f"the adapter {files.uri} at {files.revision}")] if files.base else []),
        ("Method", f"{spec.training.method.type}, quantization {spec.training.method.quantization}"),
        ("Format", form),
        ("Data", ", ".join(f"{dataset.name} ({dataset.rows} rows)" for dataset in index.datasets)),
        ("Rows", f"{data.rows.train} train, {data.rows.dev} dev, {data.rows.test} test"),
        ("Tokens", f"{data.tokens} in the train rows, {data.supervised_tokens} of them learned"),
        ("Steps", f"{settings.total_steps} at a peak rate of {settings.learning_rate:g}"),
        *sorted((key.capitalize(), text) for key, text in spec.card.items()),
    ]


def model_card(spec: RunSpec, files: ModelFiles, index: PreparedIndex, form: str, evaluation: EvaluationStatus) -> str:
    """README.md: what was trained from what, how much better it is, and how to load it."""
    lines = [
        _front_matter(spec, files, form),
        f"# {spec.identity.name}",
        spec.training.description,
        _table(("", ""), run_facts(spec, files, index, form)),
        "## Evaluation",
        _evaluation_table(evaluation),
        "## Load it",
        f"```python\n{_usage(files, form)}\n```",
        "`report.html` shows the run, `run.lock.json` holds every setting, and `samples.jsonl` the answers before and "
        "after.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _front_matter(spec: RunSpec, files: ModelFiles, form: str) -> str:
    fields = {
        "base_model": public_name(files.model) if files.model.uri.startswith("hf://") else None,
        "library_name": "peft" if form in WITH_ADAPTER else "transformers",
        "license": spec.card.get("license"),
        "pipeline_tag": "text-generation",
    }
    # JSON strings are YAML strings too, whatever a user wrote into them.
    return "---\n" + "\n".join(f"{key}: {json.dumps(text)}" for key, text in fields.items() if text) + "\n---"


def _evaluation_table(evaluation: EvaluationStatus) -> str:
    measured = evaluation.measured()
    if not measured:
        return "Not evaluated."
    columns = ["base", "tuned", *(["merged"] if any(found.merged is not None for found in measured.values()) else [])]
    rows = [
        (METRICS[metric].words, *(_number(getattr(found, column)) for column in columns))
        for metric, found in measured.items()
    ]
    note = f"{evaluation.rows} rows; {evaluation.generated_rows or 0} of them generated."
    return f"{_table(('metric', *columns), rows)}\n\n{note}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("--",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _usage(files: ModelFiles, form: str) -> str:
    """How plain libraries load each form that is there."""
    name = json.dumps(public_name(files.model))
    adapter = [
        "# The adapter: transformers and peft.",
        f"base = AutoModelForCausalLM.from_pretrained({name}, revision={json.dumps(files.model.revision)})"
        if files.model.uri.startswith("hf://")
        else f"base = AutoModelForCausalLM.from_pretrained({name})",
        'model = PeftModel.from_pretrained(base, "<this folder>")',
    ]
    folder = "<this folder>/merged" if form == "both" else "<this folder>"
    whole = ["# The whole model: transformers alone.", f'model = AutoModelForCausalLM.from_pretrained("{folder}")']
    parts = [adapter] if form in WITH_ADAPTER else []
    parts += [whole] if form != "adapter" else []
    return "\n\n".join("\n".join(part) for part in parts)


def _versions() -> dict[str, str]:
    return {package: found for package in PACKAGES if (found := _version(package))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
