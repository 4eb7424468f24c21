"""What the operator takes from its settings file is what the chart renders, field by field."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.prices import Prices
from finetune_operator.settings import PrepareSize, Settings, load_settings

from tests.helm.conftest import CHART, Chart, HelmRefusal

FROM_OTHER_VALUES = {"trainerImage", "imagePullPolicy", "imagePullSecrets", "leaseNamespace", "leaseName"}
"""Settings that come from the image values and the release; `settings` holds all others."""

CHANGED: dict[str, Any] = {
    "reportUrl": "https://reports.test",
    "reportCaConfigMap": "corporate-ca",
    "namespaces": ["team-a", "team-b"],
    "prepare": {"cpu": "500m", "memory": "3Gi", "ephemeralStorage": "20Gi"},
    "allowRemoteCode": True,
    "allowedOutputPrefixes": ["s3://models/{namespace}", "s3://shared"],
    "gpus": [{"name": "H100", "nodeLabels": {"pool": "h100"}, "memory": "80Gi", "tokensPerSecond": 5000}],
    "prices": {
        "currency": "EUR",
        "overheadPercent": 10,
        "inferencePerMillionTokens": "0.40",
        "hostingPerHour": "0.05",
        "storagePerGibMonth": "0.02",
    },
    "listenPort": 9090,
    "resyncSeconds": 1.5,
    "statusIntervalSeconds": 0,
    "retryWaitSeconds": 1000000,
    "retryWaitLimitSeconds": 2000000,
    "nodeLossSeconds": 0,
    "cleanupSeconds": 61,
    "logFormat": "text",
}
"""Each setting at another value than its default."""


def fields(model: type[Settings | PrepareSize | Prices]) -> set[str]:
    return {field.alias or "" for field in model.model_fields.values()}


def default_values() -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "values.yaml").read_text())["settings"])


def test_values_hold_every_setting_and_nothing_else() -> None:
    assert set(default_values()) | FROM_OTHER_VALUES == fields(Settings)
    assert set(default_values()["prepare"]) == fields(PrepareSize)
    assert set(default_values()["prices"]) == fields(Prices)
    assert set(CHANGED) == set(default_values())


def test_the_defaults_of_the_chart_are_those_of_the_operator() -> None:
    given = {"trainerImage": "t", "reportUrl": "http://r"}
    assert Settings.model_validate(default_values() | given) == Settings.model_validate(given)


def test_every_setting_is_rendered(chart: Chart) -> None:
    assert set(chart.settings()) == fields(Settings)


def test_the_operator_can_read_what_the_chart_renders(chart: Chart, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(chart.one("ConfigMap")["data"]["settings.yaml"])
    settings = load_settings(file)
    assert settings.trainer_image == "r.test/trainer:0.1.0"
    assert settings.report_url == "http://ft-finetune-operator.ft-system.svc.cluster.local:8080"


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_can_be_set(chart: Chart, name: str) -> None:
    rendered = chart.settings({"settings": {name: CHANGED[name]}})
    assert rendered[name] == CHANGED[name]
    assert Settings.model_validate(rendered) != Settings.model_validate(chart.settings())


def test_images_and_pull_secrets_reach_the_settings(chart: Chart) -> None:
    digest = "sha256:" + "0" * 64
    image = {"repository": "r.test/t", "tag": "ignored", "digest": digest, "pullPolicy": "Always"}
    settings = chart.settings({"trainerImage": image, "trainerImagePullSecrets": [{"name": "registry"}]})
    assert settings["trainerImage"] == f"r.test/t@{digest}"
    assert settings["imagePullPolicy"] == "Always"
    assert settings["imagePullSecrets"] == ["registry"]


@pytest.mark.parametrize("tag", ["1.10", "0123", "98cf6c828ee7", 123456789012])
def test_a_tag_is_taken_as_it_is(chart: Chart, tag: str | int) -> None:
    settings = chart.settings({"trainerImage": {"repository": "r.test/t", "tag": tag}})
    assert settings["trainerImage"] == f"r.test/t:{tag}"


def test_a_cluster_with_another_domain_is_reported_to_there(chart: Chart) -> None:
    assert chart.settings({"clusterDomain": "corp.test"})["reportUrl"].endswith(".ft-system.svc.corp.test:8080")


def test_changed_settings_make_a_new_pod(chart: Chart) -> None:
    def checksum(settings: dict[str, Any]) -> str:
        template = chart.one("Deployment", {"settings": settings})["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({"resyncSeconds": 30}) != checksum({}) == checksum({"resyncSeconds": 60})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"setings": {}}, "setings"),
    "a misspelt setting": ({"settings": {"resyncSecond": 1}}, "resyncSecond"),
    "a misspelt image key": ({"image": {"repo": "x"}}, "repo"),
    "a port out of range": ({"settings": {"listenPort": 70000}}, "listenPort"),
    "a privileged port": ({"settings": {"listenPort": 80}}, "listenPort"),
    "an interval of zero": ({"settings": {"resyncSeconds": 0}}, "resyncSeconds"),
    "a number as text": ({"settings": {"resyncSeconds": "60"}}, "resyncSeconds"),
    "an unknown log format": ({"settings": {"logFormat": "xml"}}, "logFormat"),
    "an unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "a digest that is none": ({"image": {"digest": "sha256:1"}}, "digest"),
    "a price below zero": ({"settings": {"gpus": [{"name": "H100", "pricePerHour": -1}]}}, "pricePerHour"),
    "a GPU without a name": ({"settings": {"gpus": [{"pricePerHour": 1}]}}, "name"),
    "no operator image": ({"image": {"repository": ""}}, "image.repository is empty"),
    "no trainer image": ({"trainerImage": {"repository": ""}}, "trainerImage.repository is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused_by_name(chart: Chart, case: str) -> None:
    values, word = REFUSED[case]
    with pytest.raises(HelmRefusal, match=word):
        chart.render(values)
