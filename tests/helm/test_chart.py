"""Facts of the rendered objects that a careful administrator looks for."""

import tomllib
from dataclasses import replace
from typing import Any

import pytest
import yaml
from finetune_api import names
from finetune_api.crd import custom_resource_definition

from tests.helm.conftest import CHART, Chart, Manifest, Values

NAMESPACED: Values = {"settings": {"namespaces": ["team-a", "team-b"]}}


def rules(manifests: list[Manifest]) -> list[dict[str, Any]]:
    roles = [manifest for manifest in manifests if manifest["kind"] in ("Role", "ClusterRole")]
    return [rule for role in roles for rule in role["rules"]]


def pod(chart: Chart, values: Values | None = None) -> dict[str, Any]:
    return dict(chart.one("Deployment", values)["spec"]["template"]["spec"])


def test_the_chart_passes_the_linter(chart: Chart) -> None:
    assert "0 chart(s) failed" in chart.lint()


def test_the_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    meta = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (meta["version"], meta["appVersion"]) == (project["version"], project["version"])


def test_the_crd_is_the_generated_one_and_outlives_the_release(chart: Chart) -> None:
    crd = chart.one("CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == custom_resource_definition()


def test_the_crd_can_be_left_to_somebody_else(chart: Chart) -> None:
    kinds = {manifest["kind"] for manifest in chart.render({"crds": {"enabled": False}})}
    assert "CustomResourceDefinition" not in kinds


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["all namespaces", "two namespaces"])
def test_no_role_has_any_verb_on_secrets(chart: Chart, values: Values) -> None:
    for rule in rules(chart.render(values)):
        assert not {"secrets", "*"} & {resource.split("/")[0] for resource in rule["resources"]}
        assert "*" not in rule["verbs"] + rule["apiGroups"]


def test_the_operator_may_write_the_status_of_a_finetune_and_remove_one_whose_time_is_up(chart: Chart) -> None:
    own = next(m for m in chart.render() if m["kind"] == "ClusterRole" and m["metadata"]["name"].endswith("operator"))
    verbs = {resource: set(rule["verbs"]) for rule in own["rules"] for resource in rule["resources"]}
    assert verbs["finetunes"] == {"get", "list", "watch", "patch", "delete"}
    assert verbs["finetunes/status"] == {"get", "patch"}
    assert verbs["pods"] == {"get", "list", "watch", "delete"}
    assert verbs["pods/status"] == {"patch"}


def test_a_list_of_namespaces_keeps_the_operator_out_of_all_others(chart: Chart) -> None:
    manifests = chart.render(NAMESPACED)
    others = [m for m in manifests if not m["metadata"]["name"].endswith("-lease")]
    roles = [m["metadata"]["namespace"] for m in others if m["kind"] == "Role"]
    bindings = [m["metadata"]["namespace"] for m in others if m["kind"] == "RoleBinding"]
    assert roles == bindings == ["team-a", "team-b"]
    own = next(m for m in manifests if m["kind"] == "ClusterRole" and m["metadata"]["name"].endswith("operator"))
    everywhere = {resource for rule in own["rules"] for resource in rule["resources"]}
    assert everywhere == {"tokenreviews", "customresourcedefinitions", "namespaces", "nodes"}


def test_every_binding_names_the_account_of_the_pod(chart: Chart) -> None:
    manifests = chart.render(NAMESPACED)
    account = {"kind": "ServiceAccount", "name": "ft-finetune-operator", "namespace": "ft-system"}
    bindings = [m for m in manifests if m["kind"].endswith("Binding")]
    assert [binding["subjects"] for binding in bindings] == [[account]] * 4
    assert pod(chart)["serviceAccountName"] == account["name"] == chart.one("ServiceAccount")["metadata"]["name"]


def test_an_account_of_the_users_own_is_used_and_not_made(chart: Chart) -> None:
    values = {"serviceAccount": {"create": False, "name": "mine"}}
    assert pod(chart, values)["serviceAccountName"] == "mine"
    assert [m for m in chart.render(values) if m["kind"] == "ServiceAccount"] == []


def test_editors_and_viewers_of_a_namespace_get_its_finetunes(chart: Chart) -> None:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    granted = {
        label.removeprefix(prefix): set(role["rules"][0]["verbs"])
        for role in chart.render()
        for label in role["metadata"].get("labels", {})
        if label.startswith(prefix)
    }
    assert set(granted) == {"admin", "edit", "view"}
    assert granted["view"] == {"get", "list", "watch"}
    assert granted["edit"] >= granted["view"] | {"create", "delete", "patch", "update"}


def test_the_pod_can_do_no_more_than_it_must(chart: Chart) -> None:
    security = pod(chart)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 65532
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod(chart)["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_there_are_never_two_operators_at_once(chart: Chart) -> None:
    spec = chart.one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_service_probes_and_container_agree_on_the_port(chart: Chart) -> None:
    values = {"settings": {"listenPort": 9090}}
    [container] = pod(chart, values)["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 9090}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert chart.one("Service", values)["spec"]["ports"] == [{"name": "http", "port": 8080, "targetPort": "http"}]


def test_the_service_selects_the_pod(chart: Chart) -> None:
    labels = chart.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert chart.one("Service")["spec"]["selector"].items() <= labels.items()


def test_the_operators_own_pod_is_not_taken_for_a_run(chart: Chart) -> None:
    assert names.LABEL_NAME not in chart.one("Deployment")["spec"]["template"]["metadata"]["labels"]


def test_the_settings_file_is_mounted_where_the_operator_is_told_to_look(chart: Chart) -> None:
    [container] = pod(chart)["containers"]
    [mount], [volume] = container["volumeMounts"], pod(chart)["volumes"]
    assert container["args"] == ["--settings", f"{mount['mountPath']}/settings.yaml"]
    assert volume["configMap"]["name"] == chart.one("ConfigMap")["metadata"]["name"]


PLACEMENT: Values = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "imagePullSecrets": [{"name": "registry"}],
}


@pytest.mark.parametrize("name", PLACEMENT)
def test_placement_reaches_the_pod(chart: Chart, name: str) -> None:
    assert name not in pod(chart)
    assert pod(chart, {name: PLACEMENT[name]})[name] == PLACEMENT[name]


def test_annotations_resources_and_name_reach_the_pod(chart: Chart) -> None:
    size = {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}
    values = {"podAnnotations": {"team": "ml"}, "resources": size, "fullnameOverride": "tuner"}
    deployment = chart.one("Deployment", values)
    template = deployment["spec"]["template"]
    assert deployment["metadata"]["name"] == "tuner"
    assert template["metadata"]["annotations"]["team"] == "ml"
    assert template["spec"]["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}


def test_a_release_named_like_the_chart_gives_short_names(chart: Chart) -> None:
    assert chart.one("Service")["metadata"]["name"] == "ft-finetune-operator"
    assert replace(chart, release="finetune-operator").one("Service")["metadata"]["name"] == "finetune-operator"


def test_every_value_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    values = [number for number, line in enumerate(lines) if line and not line.lstrip().startswith("#")]
    assert [lines[n] for n in values if not any("#" in near for near in lines[max(n - 4, 0) : n + 2])] == []
