"""Runs for tests: a RunSpec over files that the test writes, with `file://` for S3."""

import json
from pathlib import Path
from typing import Any

from finetune_api.run import RunSpec

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""Real data and a real tiny model; a test that needs them is skipped where they are not."""

PAIR_TEMPLATES = {"promptTemplate": "<<prompt>>", "completionTemplate": "<<completion>>"}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def some_pairs(count: int, tag: str = "row") -> list[dict[str, str]]:
    """Rows with columns prompt and completion, all different."""
    return [{"prompt": f"{tag} {number}:", "completion": f" answer {number}"} for number in range(count)]


def a_dataset(path: Path, name: str = "faq", **fields: Any) -> dict[str, Any]:
    """A dataset of the spec that lies in a local file."""
    return {"name": name, "uri": f"file://{path}", **fields}


def an_artifact(tmp_path: Path) -> Path:
    """A folder that can be published."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (folder / "README.md").write_text("card")
    return folder


def a_run(tmp_path: Path, model: Path | str, datasets: list[dict[str, Any]], **training: Any) -> RunSpec:
    """The order for a run that reads and writes below `tmp_path`."""
    spec = {
        "model": {"uri": model if isinstance(model, str) else f"file://{model}"},
        "datasets": datasets,
        "output": {"uri": "s3://unused/models"},
        **training,
    }
    return RunSpec.model_validate(
        {
            "identity": {"namespace": "team-a", "name": "story", "uid": "9f3c2a10"},
            "training": spec,
            "outputUri": f"file://{tmp_path / 'out'}",
            "scratchDirectory": str(tmp_path / "scratch"),
        }
    )
