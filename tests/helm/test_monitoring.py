"""What Prometheus and Grafana are given: by Prometheus's own parser, over metrics that the operator really has."""

import json
import re
from typing import Any

import pytest
import yaml
from finetune_operator.fleet import Fleet
from finetune_operator.metrics import LEADER
from finetune_operator.tally import GPU_SECONDS
from prometheus_client import REGISTRY, generate_latest

from tests.helm.conftest import CHART, Chart, Values
from tests.judge import Judge

RUNBOOKS = CHART.parents[1] / "docs" / "runbooks"
ALL_ON: Values = {
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "runbooks": "https://r.test/books/"},
        "dashboard": {"enabled": True, "annotations": {"folder": "ml"}},
    }
}
LABELS = 'job="ft-finetune-operator",namespace="ft-system"'


def own_metrics() -> set[str]:
    """The name of every series that the operator shows."""
    assert LEADER, "importing it is what registers it"
    assert GPU_SECONDS
    typed = [line.split()[2:] for line in generate_latest(REGISTRY).decode().splitlines() if line.startswith("# TYPE")]
    ends = {"histogram": ("_bucket", "_sum", "_count")}
    named = {name + end for name, kind in typed for end in ends.get(kind, ("",))}
    return named | {family.name for family in Fleet().collect()}


def families(series: set[str]) -> set[str]:
    """The names without what a histogram adds to them."""
    return {re.sub("_(bucket|sum|count|created)$", "", name) for name in series}


def rules(chart: Chart) -> list[dict[str, Any]]:
    rule = chart.one("PrometheusRule", ALL_ON)
    return [dict(entry) for group in rule["spec"]["groups"] for entry in group["rules"]]


def dashboard(chart: Chart) -> dict[str, Any]:
    config = next(m for m in chart.render(ALL_ON) if m["metadata"]["name"].endswith("-dashboard"))
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["metadata"]["annotations"] == {"folder": "ml"}
    return dict(json.loads(config["data"]["finetune-operator.json"]))


def panels(chart: Chart) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(chart)["panels"] if panel["type"] != "row"]


def test_nothing_for_prometheus_is_made_unasked(chart: Chart) -> None:
    kinds = {manifest["kind"] for manifest in chart.render()}
    assert not kinds & {"ServiceMonitor", "PrometheusRule"}
    assert not [m for m in chart.render() if m["metadata"]["name"].endswith("-dashboard")]


def test_the_service_monitor_finds_the_service_and_its_port(chart: Chart) -> None:
    monitor, service = chart.one("ServiceMonitor", ALL_ON), chart.one("Service", ALL_ON)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [service["spec"]["ports"][0]["name"]]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_prometheus_would_load_the_alerts(chart: Chart, judge: Judge) -> None:
    groups = chart.one("PrometheusRule", ALL_ON)["spec"]
    assert judge.rule_errors(yaml.safe_dump(groups)) == []
    assert judge.rule_errors(yaml.safe_dump(groups).replace("sum by (le)", "sum buy (le)")) != []


def test_alerts_and_panels_read_only_metrics_that_there_are(chart: Chart, judge: Judge) -> None:
    known = own_metrics()
    by_expression = dict.fromkeys(rule["expr"] for rule in rules(chart))
    by_expression |= dict.fromkeys(target["expr"] for panel in panels(chart) for target in panel["targets"])
    for expression, read in zip(by_expression, judge.metrics(list(by_expression)), strict=True):
        assert read, f"{expression} reads nothing"
        assert set(read) <= known, expression


def test_every_metric_of_our_own_is_shown_somewhere(chart: Chart) -> None:
    text = json.dumps([rules(chart), panels(chart)])
    own = {name for name in families(own_metrics()) if name.startswith("finetune_")}
    assert {name for name in own if name not in text and name.removesuffix("_total") not in text} == set()


def test_every_alert_has_its_page_and_every_page_its_alert(chart: Chart) -> None:
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules(chart)}
    assert links == {name: f"https://r.test/books/{name}.md" for name in links}
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(links)
    for name in links:
        text = (RUNBOOKS / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n")
        assert {"## What it means", "## Look at", "## Do"} <= set(text.splitlines())


def test_runbooks_and_guide_name_only_metrics_that_there_are() -> None:
    known = families(own_metrics())
    for path in [*RUNBOOKS.glob("*.md"), RUNBOOKS.parent / "guide" / "operations.md"]:
        assert set(re.findall(r"\bfinetune_[a-z_]+\b", path.read_text())) <= known, path.name


FIRING: dict[str, tuple[str, float]] = {
    "FinetuneOperatorDown": ('finetune_leader{L} 0x20', 10),
    "FinetuneOperatorRestarts": ('process_start_time_seconds{L} 1 1 2 2 3 3 4 4 5 5x20', 20),
    "FinetuneOperatorErrors": (
        'finetune_reconciles_total{L,outcome="ok"} 0+8x30\n'
        'finetune_reconciles_total{L,outcome="unreachable"} 0+2x30', 20,
    ),
    "FinetuneOperatorBug": ('finetune_reconciles_total{L,outcome="bug"} 0x10 1x20', 20),
    "FinetuneOperatorBehind": (
        'finetune_queue_seconds_bucket{L,le="10"} 0+1x30\nfinetune_queue_seconds_bucket{L,le="30"} 0+60x30\n'
        'finetune_queue_seconds_bucket{L,le="+Inf"} 0+60x30', 20,
    ),
    "FinetuneOperatorDeaf": ('finetune_heartbeat_age_seconds{L} 0+60x10', 5),
    "FinetuneProgressStale": ('finetune_oldest_progress_seconds{L} 0+60x60', 50),
    "FinetuneGpusIdle": ('finetune_runs_troubled{L,condition="GpuBusy"} 0x10 2x20', 20),
    "FinetuneWaitsLong": ('finetune_longest_wait_seconds{L,phase="Pending"} 0+60x60', 50),
    "FinetuneAttemptsFail": ('finetune_attempt_failures_total{L,class="Infrastructure"} 0+0.2x90', 80),
    "FinetuneReportsRefused": (
        'finetune_reports_total{L,outcome="accepted"} 0+60x30\n'
        'finetune_reports_total{L,outcome="forbidden"} 0+60x30', 20,
    ),
}  # fmt: skip
"""For each alert series that must set it off, a sample a minute, and after how many minutes."""

CALM = """
finetune_leader{L} 1x90
process_start_time_seconds{L} 1x90
finetune_reconciles_total{L,outcome="ok"} 0+60x90
finetune_reconciles_total{L,outcome="conflict"} 0+6x90
finetune_reconciles_total{L,outcome="unreachable"} 0+1x90
finetune_reconciles_total{L,outcome="bug"} 0x90
finetune_queue_seconds_bucket{L,le="10"} 0+60x90
finetune_queue_seconds_bucket{L,le="30"} 0+60x90
finetune_queue_seconds_bucket{L,le="+Inf"} 0+60x90
finetune_heartbeat_age_seconds{L} 2x90
finetune_oldest_progress_seconds{L} 12x90
finetune_longest_wait_seconds{L,phase="Pending"} 40x90
finetune_runs_troubled{L,condition="GpuBusy"} 0x90
finetune_runs_troubled{L,condition="Scheduled"} 3x90
finetune_longest_wait_seconds{L,phase="Queued"} 90000x90
finetune_attempt_failures_total{L,class="Diverged"} 0+1x90
finetune_attempt_failures_total{L,class="Infrastructure"} 0x60 1x30
finetune_reports_total{L,outcome="accepted"} 0+60x90
finetune_reports_total{L,outcome="throttled"} 0+1x90
"""
"""An operator that is well, beside runs that wait for their queue and one whose loss diverged."""


def loaded(lines: str) -> str:
    series = "\n".join(f"  {line}" for line in lines.replace("{L", f"{{{LABELS}").splitlines() if line)
    return f"load 1m\n{series}\n"


@pytest.mark.parametrize("name", FIRING)
def test_an_alert_fires_when_it_should(chart: Chart, judge: Judge, name: str) -> None:
    [expression] = [rule["expr"] for rule in rules(chart) if rule["alert"] == name]
    series, minutes = FIRING[name]
    [found] = judge.values(loaded(series), [expression], minutes)
    assert found


def test_no_alert_fires_while_all_is_well(chart: Chart, judge: Judge) -> None:
    assert set(FIRING) == {rule["alert"] for rule in rules(chart)}
    found = judge.values(loaded(CALM), [rule["expr"] for rule in rules(chart)], 80)
    assert found == [{}] * len(found)


def test_another_release_does_not_silence_the_alert_that_nobody_works(chart: Chart, judge: Judge) -> None:
    [expression] = [rule["expr"] for rule in rules(chart) if rule["alert"] == "FinetuneOperatorDown"]
    [found] = judge.values('load 1m\n  finetune_leader{job="other",namespace="ft-system"} 1x20\n', [expression], 10)
    assert found


def test_the_dashboard_has_its_data_source_by_name_and_places_no_panel_on_another(chart: Chart) -> None:
    shown = dashboard(chart)["panels"]
    assert {panel["datasource"]["uid"] for panel in panels(chart)} == {"${datasource}"}
    assert len({panel["id"] for panel in shown}) == len(shown)
    cells = [cell for panel in shown for cell in cells_of(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert all(panel["title"] and panel.get("description") for panel in panels(chart))


def cells_of(at: dict[str, int]) -> list[tuple[int, int]]:
    assert at["x"] + at["w"] <= 24
    return [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
