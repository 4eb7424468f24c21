"""Images: the tag follows the inputs, the Dockerfiles are read whole, and a pod runs from what was linked."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.cluster.dockerfile import Copy, Run, read_recipe
from tests.cluster.image_builder import LayerCache, planned_layers
from tests.cluster.image_store import chain_ids, sha256
from tests.cluster.images import DOCKERFILES, ROOT, build_and_load, planned_image, superseded
from tests.cluster.local_cluster import Cluster
from tests.cluster.problem import ClusterProblem

COPIED = ("crds/finetune_api", "operator", "trainer-image")
"""What the Dockerfiles read."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources of the images, to be changed."""
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_unchanged_inputs_give_the_same_reference_in_another_folder(checkout: Path) -> None:
    first = planned_image("operator", checkout).reference
    assert planned_image("operator", Path(shutil.copytree(checkout, checkout / "again"))).reference == first


def test_a_changed_source_file_changes_the_reference_of_its_image_alone(checkout: Path) -> None:
    before = {name: planned_image(name, checkout).reference for name in DOCKERFILES}
    (checkout / "operator/finetune_operator/added.py").write_text("ADDED = True\n")
    assert planned_image("operator", checkout).reference != before["operator"]
    assert planned_image("trainer", checkout).reference == before["trainer"]


def test_a_changed_source_file_leaves_the_layer_of_the_dependencies(checkout: Path) -> None:
    before = planned_image("trainer", checkout)
    (checkout / "trainer-image/finetune_trainer/added.py").write_text("ADDED = True\n")
    after = planned_image("trainer", checkout)
    heavy = next(
        layer for layer in before.layers if isinstance(layer.step, Run) and "uv pip install" in layer.step.command
    )
    assert heavy in after.layers
    assert before.digests != after.digests


def test_what_python_leaves_beside_the_sources_changes_nothing(checkout: Path) -> None:
    before = planned_image("operator", checkout).reference
    (checkout / "crds/finetune_api/__pycache__").mkdir()
    (checkout / "crds/finetune_api/__pycache__/names.pyc").write_bytes(b"compiled")
    assert planned_image("operator", checkout).reference == before


@pytest.mark.parametrize("name", list(DOCKERFILES))
def test_the_image_runs_as_nobody_in_particular(name: str) -> None:
    config = json.loads(planned_image(name).config)["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["python", "-m", f"finetune_{name}"]
    assert config["Labels"]["org.opencontainers.image.title"] == f"finetune-{name}"


@pytest.mark.parametrize("name", list(DOCKERFILES))
def test_the_image_is_installed_with_the_uv_of_the_development_lock(name: str) -> None:
    locked = re.search(r"^uv==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert f"ARG UV_VERSION={locked[1]}\n" in (ROOT / DOCKERFILES[name]).read_text()


def test_the_docker_context_holds_all_that_is_copied() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    steps = [layer.step for name in DOCKERFILES for layer in planned_image(name).layers]
    assert {step.source for step in steps if isinstance(step, Copy)} == allowed


def test_an_instruction_that_is_not_understood_is_named_with_its_line() -> None:
    with pytest.raises(ClusterProblem, match="line 3: `HEALTHCHECK"):
        read_recipe("FROM scratch\n# a comment\nHEALTHCHECK NONE\n", {}, {})


def test_a_mount_option_is_refused_and_not_skipped() -> None:
    with pytest.raises(ClusterProblem, match="line 2: `RUN --mount"):
        read_recipe("FROM scratch\nRUN --mount=type=cache,target=/x true\n", {}, {})


def test_arguments_reach_the_steps_below_them_and_the_environment_stays() -> None:
    text = "ARG BASE=x\nFROM ${BASE}\nRUN first\nARG COLOUR=red\nENV PATH=/opt:$PATH\nRUN second\n"
    recipe = read_recipe(text, {"COLOUR": "blue"}, {"PATH": "/bin"})
    environments = [dict(step.environment) for step in recipe.steps if isinstance(step, Run)]
    assert environments == [{"PATH": "/bin"}, {"PATH": "/opt:/bin", "COLOUR": "blue"}]
    assert recipe.config["Env"] == ["PATH=/opt:/bin"]
    assert recipe.base == "x"


def test_a_copied_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterProblem, match="absent"):
        planned_layers((Copy("absent", "/absent"),), "", tmp_path)


def test_chain_ids_are_those_of_the_image_specification() -> None:
    assert chain_ids(["sha256:a", "sha256:b"]) == ["sha256:a", sha256(b"sha256:a sha256:b")]


def test_only_earlier_builds_of_the_same_image_are_superseded() -> None:
    loaded = {"localhost/operator:aaa", "sha256:aaaf00", "localhost/trainer:bbb", "sha256:bbb123", "localhost/pause:x"}
    assert superseded("operator", loaded) == {"localhost/operator:aaa", "sha256:aaaf00"}


def test_a_copied_layer_belongs_to_root_and_is_readable_by_all(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("building layers needs root")
    source = tmp_path / "context" / "code"
    source.mkdir(parents=True, mode=0o700)
    (source / "module.py").write_text("")
    (source / "module.py").chmod(0o600)
    cache = LayerCache(tmp_path / "layers")
    layers = planned_layers((Copy("code", "/app/code"),), "", tmp_path / "context")
    cache.build(layers, [], tmp_path / "context")
    module = cache.folder(layers[0].digest) / "app/code/module.py"
    assert (module.stat().st_mode & 0o777, module.stat().st_uid) == (0o644, 0)
    assert module.parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.cluster
def test_a_pod_runs_from_the_image_as_non_root_on_a_read_only_root(cluster: Cluster) -> None:
    reference = build_and_load(cluster, ("operator",))["operator"]
    code = (
        "import os, json, kopf, kubernetes, pydantic, finetune_api\n"
        "try: open('/app/x', 'w'); refused = False\n"
        "except OSError as error: refused = error.strerror\n"
        "print(json.dumps({'uid': os.getuid(), 'refused': refused}))"
    )
    assert json.loads(_output_of_pod(cluster, "image-test", reference, code)) == {
        "uid": 65532,
        "refused": "Read-only file system",
    }


@pytest.mark.cluster
def test_an_unchanged_tree_loads_nothing(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    first = build_and_load(cluster, ("operator",))
    capsys.readouterr()
    assert build_and_load(cluster, ("operator",)) == first
    assert capsys.readouterr().out == ""


@pytest.mark.cluster
def test_a_loaded_image_shares_its_files_with_the_layer_cache(cluster: Cluster) -> None:
    build_and_load(cluster, ("operator",))
    snapshots = cluster.state_dir.rglob("snapshots/*/fs/app/finetune_api/names.py")
    assert any(file.stat().st_nlink > 1 for file in snapshots)


def _output_of_pod(cluster: Cluster, name: str, image: str, code: str) -> str:
    """What Python code prints in a pod as strict as ours are. Fails the test when the pod fails or never ends."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "python",
                    "image": image,
                    "imagePullPolicy": "Never",
                    "command": ["python", "-c", code],
                    "securityContext": {
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    cluster.kubectl("delete", "pod", name, "--ignore-not-found")
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    try:
        deadline = time.monotonic() + 120
        phase = ""
        while phase not in {"Succeeded", "Failed"}:
            assert time.monotonic() < deadline, cluster.kubectl("describe", "pod", name)
            time.sleep(0.2)
            phase = cluster.kubectl("get", "pod", name, "--output=jsonpath={.status.phase}")
        output = cluster.kubectl("logs", name)
        assert phase == "Succeeded", output
        return output
    finally:
        cluster.kubectl("delete", "pod", name, "--wait=false")
