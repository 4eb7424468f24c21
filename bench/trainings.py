"""One training on a workload by each trainer: ours, TRL's SFTTrainer and transformers' Trainer.

All train the same rows from the same start, in fp32, without activation checkpointing. Loading and evaluation are not
timed; the dev loss of each is measured by our code.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from finetune_api.names import Stage
from finetune_api.training import MethodType
from finetune_trainer.compute import compute_for
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.measure import Engine, make_engine
from finetune_trainer.model import load_model
from finetune_trainer.pack import step_rows
from finetune_trainer.report import Reporter
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from bench.clock import Clock
from bench.record import Run
from bench.workload import Workload

THREADS = 2

OURS, TRL, TRL_GROUPED, HF = (
    "finetune_trainer",
    "TRL SFTTrainer",
    "TRL SFTTrainer, group_by_length",
    "transformers Trainer",
)


class TrainingClock(TrainerCallback):  # type: ignore[misc]
    """Counts from the first step's start to the last step's end."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.clock.stop()


def train_ours(work: Workload) -> Run:
    """The product's own loop."""
    engine, clock = new_engine(work), Clock()
    settings = replace(work.settings, eval_steps=None)
    report = Reporter(work.spec, Stage.TRAIN, Log(stream=io.StringIO()))
    with engine.attending():
        clock.start()
        fit(engine.loss, work.prepared.train, settings, engine.packed, engine.compute.device, lambda _: 0.0, report)
        clock.stop()
    return measured(OURS, work, engine, clock)


def train_trl(work: Workload, folder: Path, sampling: str = "sequential") -> Run:
    """TRL's SFTTrainer on the same rows, padded as it does by default, in the same order or grouped by length."""
    timer, model = TrainingClock(), base_model(work)
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(work.model),
        train_dataset=dataset(work, lambda ids, flags: {"input_ids": ids, "completion_mask": flags}),
        peft_config=lora_config(work),
        args=SFTConfig(**arguments(work, folder, sampling), completion_only_loss=True, max_length=None),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return rival(TRL if sampling == "sequential" else TRL_GROUPED, work, trainer.model, timer.clock)


def train_hf(work: Workload, folder: Path) -> Run:
    """transformers' Trainer on the same rows in the same order, padded."""
    timer, model, config = TrainingClock(), base_model(work), lora_config(work)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Trainer(
        model=get_peft_model(model, config) if config else model,
        train_dataset=dataset(work, lambda ids, flags: {"input_ids": ids, "labels": labels(ids, flags)}),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        args=TrainingArguments(**arguments(work, folder, "sequential")),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return rival(HF, work, trainer.model, timer.clock)


def arguments(work: Workload, folder: Path, sampling: str) -> dict[str, Any]:
    """The run's settings as transformers' and TRL's."""
    settings = work.settings
    return {
        "output_dir": str(folder),
        "max_steps": settings.total_steps,
        "per_device_train_batch_size": settings.rows_per_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler.value,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "logging_steps": settings.logging_steps,
        "seed": settings.seed,
        "train_sampling_strategy": sampling,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def base_model(work: Workload) -> PreTrainedModel:
    """The base in fp32, with torch's seed set for an adapter's start; as many threads as we take."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(work.settings.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    return model


def lora_config(work: Workload) -> LoraConfig | None:
    """The workload's adapter as PEFT describes it; None for full training."""
    method = work.spec.training.method
    if method.type is MethodType.FULL:
        return None
    assert method.lora is not None
    rank, alpha = method.lora.rank, int(method.lora.alpha)
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def dataset(work: Workload, columns: Callable[[list[int], list[int]], dict[str, list[int]]]) -> Dataset:
    """The rows of all steps, in order, each as `columns(ids, supervised)`."""
    rows = [work.prepared.train.row(row) for step in range(work.settings.total_steps) for row in rows_of(work, step)]
    return Dataset.from_list([columns(ids.tolist(), flags.astype(int).tolist()) for ids, flags in rows])


def labels(ids: list[int], flags: list[int]) -> list[int]:
    """Ids where they are learned, -100 elsewhere."""
    return [number if learned else -100 for number, learned in zip(ids, flags, strict=True)]


def rival(who: str, work: Workload, model: PreTrainedModel, clock: Clock) -> Run:
    """What came of another trainer's model, measured as ours is."""
    engine = new_engine(work)
    if work.spec.training.method.type is MethodType.FULL:
        engine.model.load_state_dict(model.state_dict())
    else:
        set_peft_model_state_dict(engine.model, get_peft_model_state_dict(model))
    return measured(who, work, engine, clock)


def new_engine(work: Workload) -> Engine:
    """The model as the product starts with it."""
    training, compute = work.spec.training, compute_for(0, THREADS)
    model = load_model(work.model, training.method, training.hyperparameters.seed, compute)
    return make_engine(model, compute, training.hyperparameters.packing, print)


def measured(who: str, work: Workload, engine: Engine, clock: Clock) -> Run:
    """What came of a training of `engine`."""
    steps = work.settings.total_steps
    tokens = sum(int(work.prepared.train.lengths[row]) for step in range(steps) for row in rows_of(work, step))
    dev_loss = engine.likelihood(work.prepared.dev, 64).loss
    return Run(who, clock.seconds, steps, tokens, dev_loss, clock.others_share)


def rows_of(work: Workload, step: int) -> list[int]:
    """The train rows of a step."""
    return step_rows(len(work.prepared.train), work.settings.effective_batch, work.settings.seed, step)


@contextmanager
def memory_told() -> Iterator[list[int]]:
    """Appends the peak of what torch's CPU allocator gave out inside, in bytes; slow, so never around a clock."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        yield found
    now = peak = 0
    results = told.profiler and told.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"] if results else []
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    found.append(peak)
