"""Models of the hub, against a server that speaks its protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_api.run import SecretFolder
from finetune_trainer.errors import RunError
from finetune_trainer.hub import HubRepository

from tests.trainer.fake_hub import COMMIT, FakeHub, fake_hub
from tests.trainer.tiny import a_model_folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.models["org/tiny"] = a_model_folder(tmp_path / "served", weights=False)
        yield server


def a_token(tmp_path: Path, token: str | None = "secret-token") -> SecretFolder:
    folder = tmp_path / "secret"
    folder.mkdir()
    if token is not None:
        (folder / "HF_TOKEN").write_text(token + "\n")
    return SecretFolder(directory=str(folder), source="Secret team-a/hf")


def test_a_revision_is_resolved_to_a_commit_and_the_files_are_those_of_the_commit(hub: FakeHub, tmp_path: Path) -> None:
    model = HubRepository("org/tiny", None, None, hub.endpoint)
    assert model.revision == COMMIT
    assert "config.json" in model.names()
    target = tmp_path / "got"
    target.mkdir()
    model.download("config.json", target)
    assert (target / "config.json").read_bytes() == (hub.models["org/tiny"] / "config.json").read_bytes()
    assert any(f"/resolve/{COMMIT}/config.json" in line for line in hub.requests)


def test_a_model_that_is_not_there_is_named_with_what_to_do(hub: FakeHub) -> None:
    with pytest.raises(RunError, match="hf://org/nope is not on") as caught:
        HubRepository("org/nope", None, None, hub.endpoint)
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "ModelNotFound")
    assert "model.credentialsSecretRef" in caught.value.remedy


def test_an_unknown_revision_is_refused(hub: FakeHub) -> None:
    with pytest.raises(RunError, match="no revision v9") as caught:
        HubRepository("org/tiny", "v9", None, hub.endpoint)
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "RevisionNotFound")


def test_a_gated_model_needs_a_token_that_may_read_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated["org/tiny"] = "secret-token"
    with pytest.raises(RunError, match="is gated") as caught:
        HubRepository("org/tiny", None, None, hub.endpoint)
    assert caught.value.failure_class == "AccessDenied"
    assert HubRepository("org/tiny", None, a_token(tmp_path), hub.endpoint).revision == COMMIT


def test_a_secret_without_token_is_named_with_its_key(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Secret team-a/hf .* key HF_TOKEN") as caught:
        HubRepository("org/tiny", None, a_token(tmp_path, None), hub.endpoint)
    assert caught.value.failure_class == "AccessDenied"
    assert hub.requests == []


def test_the_token_is_in_no_message(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        HubRepository("org/nope", None, a_token(tmp_path), hub.endpoint)
    assert "secret-token" not in caught.value.message + caught.value.remedy
    assert "Secret team-a/hf" in caught.value.remedy


def test_a_hub_that_does_not_answer_is_infrastructure(hub: FakeHub) -> None:
    hub.broken = True
    with pytest.raises(RunError, match="does not answer as it should") as caught:
        HubRepository("org/tiny", None, None, hub.endpoint)
    assert caught.value.failure_class == "Infrastructure"
    with pytest.raises(RunError, match="does not answer") as caught:
        HubRepository("org/tiny", None, None, "http://127.0.0.1:9")
    assert caught.value.failure_class == "Infrastructure"
