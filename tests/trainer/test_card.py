"""Rule A: lock file and model card say where a model came from in words that mean something outside the pod."""

from pathlib import Path

from finetune_api.findings import DataStatus, EffectiveHyperparameters, EvaluationStatus, Resolved
from finetune_api.run import RunSpec
from finetune_trainer.card import lock_file, model_card, public_name
from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.prepared import PreparedIndex

from tests.trainer.runs import a_dataset, a_run
from tests.trainer.tiny import a_model_folder

ON_A_VOLUME = "pvc://models/tiny"


def a_volume_run(tmp_path: Path) -> RunSpec:
    """A run whose base lies on a volume, which the pod sees as a folder."""
    folder = a_model_folder(tmp_path / "volumes" / "models" / "tiny")
    run = a_run(tmp_path, folder, [a_dataset(tmp_path / "rows.jsonl")])
    return run.model_copy(update={"resolved": Resolved(model_uri=ON_A_VOLUME)})


def an_index(files: ModelFiles) -> PreparedIndex:
    return PreparedIndex(
        effective_hyperparameters=EffectiveHyperparameters(total_steps=1, learning_rate=1e-4),
        resolved=Resolved(model_uri=files.uri, model_revision=files.revision),
        data=DataStatus(),
        datasets=[],
        end_token_id=0,
    )


def test_a_base_on_a_volume_is_recorded_by_its_claim_and_never_by_the_pods_path(tmp_path: Path) -> None:
    run = a_volume_run(tmp_path)
    files = fetch_model(run, tmp_path / "scratch", weights=False)
    lock = lock_file(run, files, an_index(files), "adapter", {})
    card = model_card(run, files, an_index(files), "adapter", EvaluationStatus())
    assert lock["base"] == {"uri": ON_A_VOLUME, "revision": files.revision}
    assert lock["training"]["model"]["uri"] == ON_A_VOLUME
    assert f"| {ON_A_VOLUME} at " in card
    assert public_name(files.model) == ON_A_VOLUME
    assert "volumes" not in f"{lock['base']}{lock['startedFrom']}{lock['training']['model']}{card}"


def test_what_signs_the_url_of_a_dataset_is_recorded_nowhere(tmp_path: Path) -> None:
    dataset = {"name": "faq", "uri": "https://data.example/faq.jsonl?signature=secret"}
    run = a_run(tmp_path, a_model_folder(tmp_path / "model", weights=True), [dataset])
    files = fetch_model(run, tmp_path / "scratch", weights=False)
    lock = lock_file(run, files, an_index(files), "adapter", {})
    assert lock["training"]["datasets"][0]["uri"] == "https://data.example/faq.jsonl"
    assert "secret" not in str(lock)
