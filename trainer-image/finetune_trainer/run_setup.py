"""Everything a run is made of, read before anything is trained: what prepare left, the base's files, the device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.output import ArtifactForm
from finetune_api.run import RunSpec
from finetune_api.training import MethodType

from finetune_trainer.compute import Compute, compute_for
from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.generate import Stops
from finetune_trainer.loop import Settings
from finetune_trainer.measure import Engine, Question, make_engine, question
from finetune_trainer.model import end_ids, load_model
from finetune_trainer.model_config import position_limit, read_config
from finetune_trainer.parallel import Team
from finetune_trainer.prepared import Prepared, read_prepared
from finetune_trainer.report import Reporter
from finetune_trainer.store import Store
from finetune_trainer.vocabulary import load_tokenizer

MODEL_FORM = "model"
"""What a full run publishes."""


@dataclass(frozen=True)
class Setup:
    """Everything a run is made of but the model itself."""

    spec: RunSpec
    store: Store
    writer: str
    """Who writes: what is uploaded lies under its first characters."""
    scratch: Path
    prepared: Prepared
    files: ModelFiles
    compute: Compute
    question: Question
    team: Team

    @property
    def settings(self) -> Settings:
        """The hyperparameters in force."""
        return Settings.of(self.prepared.index.effective_hyperparameters)

    @property
    def trusted(self) -> bool:
        """Whether the model's own code may run."""
        return self.spec.training.model.trust_remote_code

    @property
    def packing(self) -> bool:
        """Whether rows are to be packed: prepare has tried it out."""
        return self.prepared.index.effective_hyperparameters.packing is not False

    @property
    def form(self) -> str:
        """What is published: `adapter`, `merged`, `both` or `model`."""
        if self.spec.training.method.type is MethodType.FULL:
            return MODEL_FORM
        return (self.spec.training.output.artifact or ArtifactForm.ADAPTER).value

    def facts(self, packed: bool) -> dict[str, Any]:
        """How it is computed: what may change the last bits of a result, and nothing else."""
        compute = self.compute
        return {
            "device": str(compute.device),
            "processes": self.team.size,
            "dtype": str(compute.dtype).removeprefix("torch."),
            "processor": compute.processor,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "packed": packed,
        }


def set_up(
    spec: RunSpec, store: Store, writer: str, team: Team, fetched: Callable[[], ModelFiles | None] | None = None
) -> Setup:
    """Read what prepare left, and fetch the weights, unless `fetched` gives them, once for all ranks of a node."""
    scratch = Path(spec.scratch_directory)
    threads = spec.threads and max(1, spec.threads // spec.processes)
    compute = compute_for(spec.gpus, threads, team.rank % team.per_node)
    prepared = read_prepared(store, scratch / f"rank-{team.rank}")

    def fetch() -> ModelFiles:
        return (fetched and fetched()) or fetch_model(spec, scratch, weights=True)

    files = team.from_first_of_node(fetch)
    folder = files.model.folder
    tokenizer, _ = load_tokenizer(folder, spec.training.model.trust_remote_code)
    rows, references = prepared.evaluated()

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    limit = position_limit(read_config(folder, files.model.uri))
    stops = Stops(end_ids(folder, prepared.index.end_ids), limit)
    asked = question(spec.training, rows, references, stops, decode)
    return Setup(spec, store, writer, scratch, prepared, files, compute, asked, team)


def load_engine(setup: Setup, report: Reporter) -> Engine:
    """The base with what the method trains on it, and a log line that says how much that is."""
    training = setup.spec.training
    seed, folder = training.hyperparameters.seed, setup.files.model.folder
    model = load_model(folder, training.method, seed, setup.compute, setup.files.adapter, setup.trusted)
    engine = make_engine(model, setup.compute, setup.packing, report.log.warn, setup.team)
    resolved = setup.prepared.index.resolved
    report.say(
        f"training {resolved.trainable_parameters} of {resolved.parameters} parameters on {setup.compute.device} in "
        f"{str(setup.compute.dtype).removeprefix('torch.')}, {'packed' if engine.packed else 'padded'}"
    )
    return engine
