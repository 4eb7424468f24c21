"""The plan of a run, made from its model, its rows, its device and what earlier attempts met; told in the log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finetune_api.findings import PlanStatus
from finetune_api.names import FailureClass
from finetune_api.run import RunSpec
from finetune_api.training import GradientCheckpointing, MethodType

from finetune_trainer.batch import Batch, Packing
from finetune_trainer.compiling import hindrance, layers_compiled
from finetune_trainer.compute import Compute, operations_per_second
from finetune_trainer.errors import RunError
from finetune_trainer.flops import operations_per_token
from finetune_trainer.long_rope import rope_border
from finetune_trainer.loop import Settings
from finetune_trainer.measure import Engine
from finetune_trainer.memory import (
    Footprint,
    available_bytes,
    checkpointing,
    footprint,
    sharded_footprint,
    weight_bytes,
)
from finetune_trainer.pack import micro_batches
from finetune_trainer.plan import (
    COMPILE_GAIN,
    COMPILE_SECONDS,
    Choice,
    Load,
    Memory,
    Rung,
    choose,
    explained,
    gib,
    ladder,
    pays_to_compile,
    training_seconds,
)
from finetune_trainer.prepared import TokenRows
from finetune_trainer.shards import gathered

NOT_ESTIMATED = "the operators of this model need data, so its memory is not estimated"


@dataclass(frozen=True)
class Plan:
    """What was chosen, and why."""

    status: PlanStatus
    reasons: dict[str, str]
    """By the name of what they explain."""

    @contextmanager
    def working(self, engine: Engine) -> Iterator[None]:
        """Inside, the engine trains as planned."""
        with (
            checkpointing(engine.inner, self.status.activation_checkpointing),
            layers_compiled(engine.inner, self.status.compiled),
        ):
            yield

    def to_json(self) -> dict[str, Any]:
        """`plan.json`."""
        return {**self.status.to_json(), "reasons": self.reasons}


@dataclass(frozen=True)
class Planner:
    """What a plan is made from."""

    spec: RunSpec
    engine: Engine
    rows: TokenRows
    settings: Settings
    steps_done: Callable[[], int] = lambda: 0
    """Optimizer steps of earlier attempts; asked for where it matters."""
    speed: Callable[[Compute], float] = operations_per_second
    """Operations per second of the device; likewise."""

    @property
    def wanted(self) -> GradientCheckpointing:
        """What the user asked for."""
        return self.spec.training.hyperparameters.gradient_checkpointing

    def plan(self, tell: Callable[[list[str]], None]) -> Plan:
        """Choose, and say what and why. Raises RunError (InvalidConfig): NotEnoughMemory, CheckpointingUnsupported."""
        memory, found = self._memory(), dict[Rung, Footprint | None]()

        def cost(rung: Rung) -> int | None:
            if rung not in found:
                found[rung] = self._footprint(rung)
            known = found[rung]
            return None if known is None else known.total

        choice = choose(self._ladder(), self.spec.memory_rung, cost, memory)
        compiled, why = self._compiling(choice.rung)
        reasons = self._reasons(choice, found[choice.rung], memory) | {"compiled": why}
        plan = Plan(self._described(choice, memory, compiled), reasons)
        tell(explained(plan.status, plan.reasons))
        return plan

    def _ladder(self) -> list[Rung]:
        wanted = self.wanted
        if not self.engine.inner.supports_gradient_checkpointing:
            if wanted is GradientCheckpointing.ALWAYS:
                raise _unsupported(self.engine.inner.config.model_type)
            wanted = GradientCheckpointing.NEVER
        return ladder(Load(_tokens(self._worst_batch(None)), int(self.rows.lengths.max())), wanted)

    def _worst_batch(self, tokens: int | None) -> Batch:
        """The micro-batch of the longest rows."""
        count = self.settings.rows_per_batch
        longest = np.argsort(-self.rows.lengths, kind="stable")[:count]
        border = rope_border(self.engine.inner.config)
        return micro_batches(self.rows, [int(row) for row in longest], count, self.engine.packed, tokens, border)[0]

    def _footprint(self, rung: Rung) -> Footprint | None:
        """Of the largest micro-batch of a rung; None where it cannot be estimated."""
        engine, optimizer, batch = self.engine, self.settings.optimizer, self._worst_batch(rung.tokens)
        device, processes = engine.compute.device, engine.team.size
        with engine.attending(), checkpointing(engine.inner, rung.checkpointing):
            try:
                if self._sharded:
                    whole = gathered(engine.loss, engine.compute)
                    return sharded_footprint(engine.loss, batch, optimizer, device, processes, whole)
                accumulating = self.settings.effective_batch > batch.rows
                return footprint(engine.loss, batch, optimizer, device, accumulating)
            except (RuntimeError, NotImplementedError, AssertionError, AttributeError, TypeError):
                return None

    def _memory(self) -> Memory:
        device, limit = self.engine.compute.device, self.spec.memory_bytes
        limit = limit and limit // self.spec.processes
        found = available_bytes(device, limit, weight_bytes(self.engine.loss))
        if device.type == "cuda":
            size = gib(torch.cuda.get_device_properties(device).total_memory)
            return Memory(found, f"GPU {torch.cuda.get_device_name(device)}, {size}", "choose a bigger GPU")
        source = f"trainer.memory, {gib(limit)}" if limit else "this machine's memory"
        return Memory(found, source, "raise trainer.memory")

    def _compiling(self, rung: Rung) -> tuple[bool, str]:
        """Whether layers are compiled, and why."""
        engine, by_rows = self.engine, self.engine.packing is Packing.ROWS
        hindered = hindrance(engine.inner, by_rows, rung.checkpointing, self._sharded)
        if hindered:
            return False, hindered
        left = self._operations(self.settings.total_steps - self.steps_done()), self.speed(engine.compute)
        words = f"an estimated {training_seconds(*left) / 60:.0f} min of training are left, compiling takes"
        return pays_to_compile(*left), f"{words} {COMPILE_SECONDS // 60} and saves about {COMPILE_GAIN:.0%}"

    def _operations(self, steps: int) -> float:
        """Of one of the devices, in so many steps."""
        parameters = list(self.engine.loss.parameters())
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        tokens = steps * self.settings.effective_batch * float(self.rows.lengths.mean()) / self.engine.team.size
        return tokens * operations_per_token(sum(each.numel() for each in parameters), trained)

    @property
    def _sharded(self) -> bool:
        return self.engine.team.size > 1 and self.spec.training.method.type is MethodType.FULL

    def _described(self, choice: Choice, memory: Memory, compiled: bool) -> PlanStatus:
        engine = self.engine
        return PlanStatus(
            precision=str(engine.compute.dtype).removeprefix("torch."),
            attention="packed" if engine.packed else "padded",
            micro_batch_tokens=choice.rung.tokens,
            activation_checkpointing=choice.rung.checkpointing,
            compiled=compiled,
            memory_rung=self.spec.memory_rung,
            estimated_bytes=choice.estimate,
            available_bytes=None if memory.bytes is None else memory.available,
        )

    def _reasons(self, choice: Choice, cost: Footprint | None, memory: Memory) -> dict[str, str]:
        """Why, by the name of what the plan says."""
        parts = cost and (
            f"weights {gib(cost.weights)}, optimizer {gib(cost.optimizer)}, a step {gib(cost.step)}, "
            f"a checkpoint's copy {gib(cost.snapshot)}"
        )
        return {
            "precision": self.engine.compute.reason,
            "attention": "rows end to end, nothing padded" if self.engine.packed else "rows one below the other",
            "microBatchTokens": self._why_so_many(choice),
            "activationCheckpointing": f"gradientCheckpointing is {self.wanted}",
            "memoryRung": "attempts that had no memory left",
            "estimatedBytes": parts or "",
            "availableBytes": f"most of {memory.source}",
        }

    def _why_so_many(self, choice: Choice) -> str:
        if choice.estimate is None:
            return NOT_ESTIMATED
        if choice.number == 0:
            return f"the longest {self.settings.rows_per_batch} rows, as trainBatchSize says"
        return "memory asks for less than trainBatchSize says; the rows of a step stay the same"


def _tokens(batch: Batch) -> int:
    return batch.input_ids.numel()


def _unsupported(model_type: str) -> RunError:
    message = f"hyperparameters.gradientCheckpointing is always, which models of type {model_type} cannot do"
    return RunError(FailureClass.INVALID_CONFIG, "CheckpointingUnsupported", message, "Set it to auto or never.")
