"""Finetune in, objects out: golden files, reviewed as code; `pytest --update-golden` rewrites them."""

from pathlib import Path

import pytest
import yaml
from finetune_api import names
from finetune_api.findings import Resolved
from finetune_api.names import Stage
from finetune_api.resource import Finetune, parse_finetune
from finetune_api.run import RunSpec
from finetune_api.status import FinetuneStatus
from finetune_operator.manifests import attempt_manifests
from finetune_operator.object_names import child_name, gang_name
from finetune_operator.order import run_spec

from tests.builders import UID, some_settings

GOLDEN = Path(__file__).parents[1] / "data" / "finetunes"
RUN_SPEC = Path(__file__).parents[1] / "data" / "run_spec.json"


def read(name: str) -> Finetune:
    body = yaml.safe_load((GOLDEN / "input" / name).read_text())
    body["metadata"] |= {"uid": UID}
    finetune = parse_finetune(body)
    uri = finetune.spec.model.uri or "s3://out/earlier"
    return finetune.model_copy(
        update={"status": FinetuneStatus(resolved=Resolved(model_uri=uri, model_revision="abc"))}
    )


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "input").iterdir()))
def test_manifests_are_the_reviewed_ones(name: str, update_golden: bool) -> None:
    manifests = [m for stage in Stage for m in attempt_manifests(read(name), stage, 1, some_settings())]
    text = yaml.safe_dump_all(manifests, sort_keys=False, width=120)
    golden = GOLDEN / "output" / name
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_pod_believes_the_authority_of_the_progress_endpoint_that_the_settings_name() -> None:
    settings = some_settings(report_ca_config_map="corporate-ca")
    *_, job = attempt_manifests(read("minimal.yaml"), Stage.TRAIN, 1, settings)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [volume] = [v for v in pod["volumes"] if v.get("configMap", {}).get("name") == "corporate-ca"]
    [mount] = [m for m in container["volumeMounts"] if m["name"] == volume["name"]]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    told = run_spec(read("minimal.yaml"), Stage.TRAIN, 1, settings).report
    assert told is not None
    assert told.ca_file == environment[names.ENV_KUBEFLOW_CA_FILE] == f"{mount['mountPath']}/ca.crt"
    assert volume["configMap"]["optional"], "a missing one would keep the pod from starting"


def test_the_sample_that_the_trainer_tests_read_is_what_the_operator_writes(update_golden: bool) -> None:
    text = run_spec(read("everything.yaml"), Stage.TRAIN, 2, some_settings()).model_dump_json(
        by_alias=True, exclude_none=True, indent=2
    )
    if update_golden:
        RUN_SPEC.write_text(text + "\n")
    assert RunSpec.model_validate_json(RUN_SPEC.read_text()) == RunSpec.model_validate_json(text)


def test_the_longest_name_still_makes_valid_job_names() -> None:
    finetune = read("minimal.yaml")
    longest = finetune.metadata.model_copy(update={"name": "x" * names.MAX_NAME_LENGTH})
    assert len(child_name(finetune.model_copy(update={"metadata": longest}), Stage.PREPARE, 99999)) <= 63


def test_the_longest_name_still_makes_valid_names_of_the_pods_of_a_gang() -> None:
    finetune = read("everything.yaml")
    longest = finetune.metadata.model_copy(update={"name": "x" * names.MAX_NAME_LENGTH})
    finetune = finetune.model_copy(update={"metadata": longest})
    assert len(f"{child_name(finetune, Stage.TRAIN, 9999)}-63") <= 63
    assert len(gang_name(finetune)) <= 63


def test_the_pods_of_a_gang_meet_where_their_service_names_the_first() -> None:
    finetune = read("everything.yaml")
    service, _, job = attempt_manifests(finetune, Stage.TRAIN, 2, some_settings())
    host, _, port = (run_spec(finetune, Stage.TRAIN, 2, some_settings()).rendezvous or "").rpartition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert run_spec(finetune, Stage.PREPARE, 1, some_settings()).devices == 2, "prepare reckons with every device"


def test_no_secret_and_no_kubernetes_uri_reaches_the_order() -> None:
    for path in (GOLDEN / "input").iterdir():
        text = run_spec(read(path.name), Stage.PREPARE, 1, some_settings()).training.model_dump_json()
        assert "configmap://" not in text
        assert "pvc://" not in text
