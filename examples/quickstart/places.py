"""Where the quickstart runs: a Kubernetes of its own on this machine, a kind cluster, or the kubectl context."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.quickstart.terminal import step, timed
from tests.cluster import images, local_cluster
from tests.cluster.binaries import binary_folder, built_binaries
from tests.cluster.packages import NODE, require_packages, require_root
from tests.cluster.problem import ClusterProblem
from tests.cluster.product import Images, install_s3
from tests.cluster.s3 import S3

ROOT = Path(__file__).resolve().parents[2]
KIND_CLUSTER = "finetune-quickstart"


@dataclass(frozen=True)
class Place:
    """A running cluster, and the images that its nodes can take."""

    kubectl_program: Path
    helm: Path
    kubeconfig: Path
    images: Images
    reaches_services: bool
    """Whether this machine reaches the addresses of the cluster's Services."""
    export: str = ""
    """What a user types first so that kubectl speaks to this cluster; empty where it does already."""

    def command(self, *arguments: str) -> list[str]:
        """kubectl, to be run with these arguments."""
        return [str(self.kubectl_program), "--kubeconfig", str(self.kubeconfig), *arguments]

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Runs kubectl; returns its output. Raises ClusterProblem with its own words."""
        return run(self.command(*arguments), input=input)

    @contextmanager
    def s3(self) -> Iterator[S3]:
        """The S3 in the cluster, with an address that works on this machine."""
        server = install_s3(self, self.images)
        if self.reaches_services:
            yield server
            return
        with subprocess.Popen(
            self.command("port-forward", "-n", "s3", "service/s3", ":7070"), stdout=subprocess.PIPE, text=True
        ) as forward:
            try:
                assert forward.stdout is not None
                address = re.search(r"127\.0\.0\.1:\d+", forward.stdout.readline())
                if address is None:
                    raise ClusterProblem("kubectl port-forward to service/s3 failed: see the lines above.")
                yield replace(server, endpoint=f"http://{address[0]}")
            finally:
                forward.terminate()


def run(command: Sequence[str], input: str | None = None) -> str:
    """A program's output. Raises ClusterProblem with its own last words."""
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise ClusterProblem(f"`{' '.join(command[:6])} …` failed: " + "\n".join(said))
    return done.stdout


@contextmanager
def local() -> Iterator[Place]:
    """The local cluster; it stays up. What is not there yet is built, two things at a time."""
    require_root()
    require_packages(NODE, install=True)
    if not (binary_folder() / "complete").exists():
        _build_everything()
    cluster = timed("Kubernetes is up", local_cluster.up)
    references = timed("images are loaded", lambda: images.build_and_load(cluster))
    yield Place(
        kubectl_program=cluster.binary("kubectl"),
        helm=cluster.binary("helm"),
        kubeconfig=cluster.kubeconfig,
        images=Images(**references),
        reaches_services=True,
        export=f"export KUBECONFIG={cluster.kubeconfig} PATH={cluster.binaries}:$PATH",
    )


def _build_everything() -> None:
    """On a fresh machine: Go compiles on the CPU while packages for the images come over the network."""
    print("  This machine has not built Kubernetes yet: it takes some minutes, once.", flush=True)
    with ThreadPoolExecutor(2) as pool:
        programs = pool.submit(timed, "Kubernetes, Helm and S3 are built", built_binaries)
        layers = pool.submit(timed, "images are built", lambda: images.build(tuple(images.DOCKERFILES)))
        layers.result()
        programs.result()


@contextmanager
def current(given: Images | None) -> Iterator[Place]:
    """The cluster of the kubectl context. Raises ClusterProblem where it is not told which images to take."""
    if given is None:
        raise ClusterProblem(
            "CLUSTER=current takes images from your registry: build and push them as README.md and "
            "examples/quickstart/s3.Dockerfile say, then type: make quickstart CLUSTER=current "
            "OPERATOR_IMAGE=… TRAINER_IMAGE=… S3_IMAGE=…"
        )
    kubectl = program("kubectl")
    with _written(run([str(kubectl), "config", "view", "--raw", "--flatten", "--minify"])) as kubeconfig:
        yield Place(kubectl, program("helm"), kubeconfig, given, reaches_services=False)


@contextmanager
def kind() -> Iterator[Place]:
    """A kind cluster of the quickstart's own; it stays. Docker builds the images."""
    docker, kind_program, kubectl, helm = (program(name) for name in ("docker", "kind", "kubectl", "helm"))
    names = Images("finetune-operator:quickstart", "finetune-trainer:quickstart", "finetune-s3:quickstart")
    files = {names.operator: "operator/Dockerfile", names.trainer: "trainer-image/Dockerfile"}
    files[names.versitygw] = "examples/quickstart/s3.Dockerfile"
    if KIND_CLUSTER not in run([str(kind_program), "get", "clusters"]).split():
        with step("the kind cluster is up"):
            run([str(kind_program), "create", "cluster", "--name", KIND_CLUSTER, "--wait", "120s"])
    for name, file in files.items():
        with step(f"{name} is built and loaded"):
            run([str(docker), "build", "--quiet", "--file", str(ROOT / file), "--tag", name, str(ROOT)])
            run([str(kind_program), "load", "docker-image", name, "--name", KIND_CLUSTER])
    with _written(run([str(kind_program), "get", "kubeconfig", "--name", KIND_CLUSTER])) as kubeconfig:
        export = f"kubectl config use-context kind-{KIND_CLUSTER}"
        yield Place(kubectl, helm, kubeconfig, names, reaches_services=False, export=export)


def program(name: str) -> Path:
    """A program on PATH. Raises ClusterProblem where there is none."""
    found = shutil.which(name)
    if found is None:
        raise ClusterProblem(f"{name} is not on PATH: install it, or use CLUSTER=local, which needs nothing but root.")
    return Path(found)


@contextmanager
def _written(kubeconfig: str) -> Iterator[Path]:
    """The text in a file that only we can read, for as long as it is needed."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kubeconfig"
        path.write_text(kubeconfig, encoding="utf-8")
        yield path


def manifest(kind: str, name: str, namespace: str | None = None, **fields: object) -> str:
    """A core/v1 object as JSON, for `kubectl apply -f -`."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return json.dumps({"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields})
