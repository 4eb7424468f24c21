"""The trainings that `bench.gpu` measures: the product's parts with a technique more or less, and TRL's SFTTrainer.

Each takes the same rows in the same steps. The clock starts after WARMUP_STEPS and takes STEPS, without what a trainer
does before its first step.
"""

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from finetune_api.training import GradientCheckpointing, Optimizer
from finetune_trainer import attention
from finetune_trainer.batch import Batch
from finetune_trainer.compiling import layers_compiled
from finetune_trainer.compute import Compute
from finetune_trainer.measure import Engine
from finetune_trainer.memory import available_bytes, checkpointing, footprint, weight_bytes
from finetune_trainer.optimizer import clip_gradients, make_optimizer, trained_parameters
from finetune_trainer.pack import micro_batches
from finetune_trainer.plan import Choice, Load, Memory, Rung, choose, gib, ladder
from finetune_trainer.prepared import TokenRows

from bench.gpu_models import ALPHA, RANK, Shape, base_model, engine_for, engine_without_data, some_rows

WARMUP_STEPS, STEPS = 2, 6

WITHOUT_LIMIT = Memory(None, "no limit", "")


@dataclass(frozen=True)
class Variant:
    """One training to measure."""

    name: str
    shape: str = "8B"
    method: str = "lora"
    packed: bool = True
    varlen: bool = True
    cudnn: bool = False
    """Whether cuDNN's kernel for rows is asked first, as torch would."""
    bare_head: bool = True
    recomputing: GradientCheckpointing = GradientCheckpointing.AUTO
    compiled: bool = False
    trl: bool = False

    @property
    def is_planned_apart(self) -> bool:
        """Whether its plan is no other's: packed, with flash attention's kernel and the tiled loss."""
        return self.packed and self.varlen and self.bare_head and not (self.trl or self.cudnn or self.compiled)


@dataclass
class Meter:
    """Seconds and tokens of the measured steps, and the peak memory of the device; on a CPU, of the process."""

    device: torch.device
    seconds: float = 0.0
    tokens: int = 0
    peak_bytes: int = 0
    remark: str = ""
    """What the plan, or the trainer's own setting, was."""
    _began: float = field(default=0.0, repr=False)

    def after_step(self, step: int, rows: TokenRows, rows_per_step: int) -> None:
        """`step` steps are done, of `rows_per_step` rows each, in order."""
        if step == WARMUP_STEPS:
            self._wait()
            self._began = time.monotonic()
        if step == WARMUP_STEPS + STEPS:
            self._wait()
            self.seconds = time.monotonic() - self._began
            self.tokens = int(rows.lengths[WARMUP_STEPS * rows_per_step : step * rows_per_step].sum())
            self.peak_bytes = self._peak()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(variant: Variant, shape: Shape, device: torch.device, folder: Path) -> Meter:
    """Train one variant. Raises whatever stands in its way."""
    meter = Meter(device)
    (train_trl if variant.trl else train_ours)(variant, shape, folder, meter)
    return meter


def train_ours(variant: Variant, shape: Shape, folder: Path, meter: Meter) -> None:
    """Steps of the product's parts, in micro-batches as its plan has them."""
    device = meter.device
    compute = Compute(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    engine = engine_for(shape, variant.method, compute, variant.packed, variant.bare_head)
    parameters, rows = trained_parameters(engine.loss), some_rows(shape)
    optimizer = make_optimizer(Optimizer.ADAMW, parameters, 1e-5, 0.0)
    with ExitStack() as stack:
        stack.enter_context(attended(engine, variant))
        plan = planned(engine, rows, shape, variant.recomputing, memory_of(engine))
        meter.remark = described(plan)
        stack.enter_context(checkpointing(engine.inner, plan.rung.checkpointing))
        stack.enter_context(layers_compiled(engine.inner, variant.compiled))
        for step in range(WARMUP_STEPS + STEPS):
            chosen = range(step * shape.rows_per_step, (step + 1) * shape.rows_per_step)
            batches = micro_batches(rows, chosen, shape.rows_per_step, engine.packed, plan.rung.tokens)
            supervised = sum(batch.supervised for batch in batches)
            for batch in batches:
                (engine.loss(batch.to(device)) / supervised).backward()
            clip_gradients(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            meter.after_step(step + 1, rows, shape.rows_per_step)


@contextmanager
def attended(engine: Engine, variant: Variant) -> Iterator[None]:
    """Inside, the engine attends as the variant says."""
    with ExitStack() as stack:
        if not variant.varlen:
            stack.enter_context(patch.object(attention, "_fits_kernel", lambda *_: False))
        if variant.cudnn:
            flash, cudnn, *others = attention.BACKENDS
            stack.enter_context(patch.object(attention, "BACKENDS", (cudnn, flash, *others)))
        stack.enter_context(engine.attending())
        yield


def memory_of(engine: Engine) -> Memory:
    """What training may take of a GPU; on a CPU, where only a small shape is tried, as much as it wants."""
    device = engine.compute.device
    if device.type == "cpu":
        return WITHOUT_LIMIT
    return Memory(available_bytes(device, None, weight_bytes(engine.loss)), "the GPU", "")


def planned(
    engine: Engine, rows: TokenRows, shape: Shape, recomputing: GradientCheckpointing, memory: Memory
) -> Choice:
    """The first rung of the product's ladder that fits, for the longest rows of a step; call it while they attend."""
    longest = [int(row) for row in np.argsort(-rows.lengths, kind="stable")[: shape.rows_per_step]]

    def worst(tokens: int | None) -> Batch:
        return micro_batches(rows, longest, shape.rows_per_step, engine.packed, tokens)[0]

    def cost(rung: Rung) -> int:
        batch = worst(rung.tokens)
        accumulating = batch.rows < shape.rows_per_step
        with checkpointing(engine.inner, rung.checkpointing):
            found = footprint(engine.loss, batch, Optimizer.ADAMW, engine.compute.device, accumulating)
        return found.total - found.snapshot  # A GPU's checkpoint lies in main memory.

    load = Load(worst(None).input_ids.numel(), int(rows.lengths.max()))
    return choose(ladder(load, recomputing), 0, cost, memory)


def planned_without_gpu(variant: Variant, shape: Shape, memory: Memory) -> Choice:
    """The plan for a GPU with so much memory, on any machine: nothing is allocated."""
    engine, rows = engine_without_data(shape, variant.method), some_rows(shape)
    with engine.attending(), patch.object(attention, "_fits_kernel", lambda *_: True):
        return planned(engine, rows, shape, variant.recomputing, memory)


def described(plan: Choice) -> str:
    """A plan in a line."""
    activations = "computed again" if plan.rung.checkpointing else "kept"
    return (
        f"micro-batches of {plan.rung.tokens:,} tokens, activations {activations}, estimated {gib(plan.estimate or 0)}"
    )


def train_trl(variant: Variant, shape: Shape, folder: Path, meter: Meter) -> None:
    """TRL's SFTTrainer with the same adapter on the same rows, padded, in bf16 on a GPU.

    It plans nothing, so it gets the largest batch that fits, activations computed again if need be.
    """
    settings = [(batch, recomputing) for recomputing in (False, True) for batch in (4, 2, 1)]
    for batch, recomputing in settings:
        meter.remark = f"batches of {batch}, activations {'computed again' if recomputing else 'kept'}"
        try:
            _train_trl(shape, folder, meter, batch, recomputing)
            return
        except torch.OutOfMemoryError:
            if (batch, recomputing) == settings[-1]:
                raise
        gc.collect()  # A trainer and its callbacks know each other.
        torch.cuda.empty_cache()


def _train_trl(shape: Shape, folder: Path, meter: Meter, batch: int, recomputing: bool) -> None:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    rows, gpu = some_rows(shape), meter.device.type == "cuda"

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: object, state: object, control: object, **named: object) -> None:
            meter.after_step(state.global_step, rows, shape.rows_per_step)  # type: ignore[attr-defined]

    columns = [rows.row(number) for number in range((WARMUP_STEPS + STEPS) * shape.rows_per_step)]
    dataset = Dataset.from_list(
        [{"input_ids": ids.tolist(), "completion_mask": flags.astype(int).tolist()} for ids, flags in columns]
    )
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=WARMUP_STEPS + STEPS,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=shape.rows_per_step // batch,
        train_sampling_strategy="sequential",
        completion_only_loss=True,
        max_length=None,
        gradient_checkpointing=recomputing,
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=base_model(shape, torch.bfloat16 if gpu else torch.float32, meter.device),
        processing_class=_tokenizer(),
        train_dataset=dataset,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=arguments,
        callbacks=[Timed()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _tokenizer() -> object:
    """TRL wants one, though the rows are ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"0": 0})), eos_token="0", pad_token="0")
