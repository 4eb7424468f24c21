"""`make quickstart`: from whatever there is to a Succeeded Finetune with its artifact in S3, told step by step.

    python -m examples.quickstart.run [CLUSTER=local|current|kind] [OPERATOR_IMAGE=… TRAINER_IMAGE=… S3_IMAGE=…]

What is there already (programs, images, base model, cluster) is not made again. The cluster stays up afterwards.
"""

import hashlib
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from examples.quickstart import dates, places, summary
from examples.quickstart.bucket import Bucket
from examples.quickstart.places import ROOT, Place, manifest
from examples.quickstart.terminal import LiveLine, say, step
from examples.quickstart.watch import follow
from tests.cluster.locks import locked
from tests.cluster.paths import cache_root
from tests.cluster.problem import ClusterProblem
from tests.cluster.product import RELEASE, Images, install_operator
from tests.cluster.s3 import S3

HERE = Path(__file__).resolve().parent
FINETUNE = HERE / "finetune.yaml"
ROWS = 4000
SAMPLES = 3
LOG_LINES = 15

INPUTS = ("dates.py", "base_model.py")
"""The base model follows from these files, and from the versions of these packages."""
PACKAGES = ("torch", "transformers", "tokenizers")

SETTINGS = ("settings.statusIntervalSeconds=1",)
"""Beside the chart's defaults: progress is written as it comes, since somebody is looking."""

Json = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run the quickstart; returns the exit code. A problem is one message on standard error."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        with chosen_place(arguments) as place:
            succeeded = run(place)
    except ClusterProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What was started goes on; `make down` stops the local cluster.", file=sys.stderr)
        return 130
    say("all together", time.monotonic() - started)
    return 0 if succeeded else 1


def chosen_place(arguments: list[str]) -> AbstractContextManager[Place]:
    """The place that the arguments name. Raises ClusterProblem for one that there is not."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    cluster = given.get("CLUSTER") or "local"
    names = [given.get(name, "") for name in ("OPERATOR_IMAGE", "TRAINER_IMAGE", "S3_IMAGE")]
    if cluster == "local":
        return places.local()
    if cluster == "kind":
        return places.kind()
    if cluster == "current":
        return places.current(Images(*names) if all(names) else None)
    raise ClusterProblem(f"CLUSTER={cluster} is unknown: choose local, current or kind.")


def run(place: Place) -> bool:
    """Install, upload, apply, follow, show. False when the Finetune failed."""
    model = base_model()
    with step("the operator is installed with Helm"):
        install(place)
    with place.s3() as access:
        with step("base model and rows are in S3"):
            bucket = Bucket(access)
            upload(bucket, model)
        name, namespace = apply(place, access)
        status = follow(place, name, namespace)
        if status["phase"] != "Succeeded":
            print(failure(place, status, name, namespace), file=sys.stderr)
            return False
        show(bucket, status)
    print(next_commands(place, name, namespace))
    return True


def install(place: Place) -> None:
    """The operator, by Helm. Raises ClusterProblem with what its pod says, where it does not come up."""
    try:
        install_operator(place.helm, place.kubeconfig, place.images, *SETTINGS)
    except ClusterProblem as problem:
        logs = place.kubectl("logs", "-n", RELEASE, f"deployment/{RELEASE}", "--tail=5", "--ignore-errors")
        raise ClusterProblem(f"{problem}\nThe operator's last log lines:\n{logs}".rstrip()) from problem


def base_model() -> Path:
    """The folder of the base model, pretrained first if need be."""
    folder = cache_root() / "quickstart" / model_hash()
    with locked(cache_root() / "quickstart.lock", "the base model's pretraining", seconds=1800):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with step("the base model is pretrained"):
                pretrain(folder)
    return folder


def model_hash() -> str:
    """12 hex digits over all that the base model follows from."""
    digest = hashlib.sha256(repr([(name, version(name)) for name in PACKAGES]).encode())
    for name in INPUTS:
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:12]


def pretrain(folder: Path) -> None:
    """In a process of its own, so that this one needs no torch. Raises ClusterProblem with its last words."""
    command = [sys.executable, "-m", "examples.quickstart.base_model", str(folder)]
    shown, said = LiveLine(), [""]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            said.append(text.rstrip())
            if text.startswith("step "):
                shown.show(f"pretraining  {text.rstrip()}")
    shown.end()
    if process.returncode != 0:
        raise ClusterProblem(f"`{' '.join(command)}` failed: " + "\n".join(said[-5:]))


def upload(bucket: Bucket, model: Path) -> None:
    """Base model and rows, to where finetune.yaml says."""
    bucket.upload(model, "base")
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "train.jsonl"
        dates.write_rows(rows, ROWS)
        bucket.upload(rows, "data/train.jsonl")


def apply(place: Place, access: S3) -> tuple[str, str]:
    """Namespace, Secret and the Finetune; one of an earlier run goes first. Returns its name and namespace."""
    meta = yaml.safe_load(FINETUNE.read_text(encoding="utf-8"))["metadata"]
    name, namespace = meta["name"], meta["namespace"]
    keys = {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
    with step(f"{FINETUNE.relative_to(ROOT)} is applied"):
        place.kubectl("apply", "-f", "-", input=manifest("Namespace", namespace))
        place.kubectl("apply", "-f", "-", input=manifest("Secret", "s3", namespace, stringData=keys))
        place.kubectl(
            *("delete", "finetune", name, "-n", namespace, "--ignore-not-found"),
            *("--cascade=foreground", "--timeout=120s"),
        )
        place.kubectl("apply", "-f", str(FINETUNE))
    return name, namespace


def failure(place: Place, status: Json, name: str, namespace: str) -> str:
    """What went wrong, what to do, and the last lines of the newest pod."""
    found = status.get("failure") or {}
    selector = f"finetune-operator.io/name={name}"
    logs = place.kubectl("logs", "-n", namespace, "-l", selector, f"--tail={LOG_LINES}", "--prefix")
    head = f"{status['phase']}: {found.get('reason', '')}: {found.get('message', 'the status does not say why')}"
    return "\n".join([head, found.get("remedy", ""), "", "The last log lines of its pods:", logs]).rstrip()


def show(bucket: Bucket, status: Json) -> None:
    """Status, before and after, samples and files."""
    artifact = status["artifact"]
    samples = bucket.read_lines(status["evaluation"]["samplesUri"])
    parts = [
        summary.conditions(status),
        summary.numbers(status),
        summary.answers(samples[:SAMPLES]),
        f"  {artifact['uri']}\n" + summary.files(bucket.sizes(artifact["uri"])),
    ]
    print("\n" + "\n\n".join(parts) + "\n", flush=True)


def next_commands(place: Place, name: str, namespace: str) -> str:
    """Three commands to try, as they can be typed."""
    commands = [
        f"kubectl get ft -n {namespace} -o wide",
        f"kubectl get ft {name} -n {namespace} -o yaml",
        f"kubectl logs -n {namespace} -l finetune-operator.io/name={name},finetune-operator.io/stage=train --tail=50",
    ]
    return "\n".join(["  Try next:", *(f"    {line}" for line in [place.export, *commands] if line), ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
