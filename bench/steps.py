"""Training steps per second: our loop against TRL's SFTTrainer, on the quickstart's model and rows.

    python -m bench.steps [STEPS]

Both train the same rows in the same steps from the same adapter's seed, in fp32 with two threads; TRL pads as it does
by default. They take turns, and the median counts. Loading and evaluation are not timed. The dev loss of both is
measured by the same code and must agree, else the figure would mean nothing; nor does it where other programs took
much of the processor, which is written beside it.
"""

import io
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset, disable_progress_bars
from finetune_api.names import Stage
from finetune_trainer.compute import compute_for
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.measure import Engine, make_engine
from finetune_trainer.model import load_model
from finetune_trainer.pack import step_rows
from finetune_trainer.quiet import quiet_libraries
from finetune_trainer.report import Reporter
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from bench.clock import Clock
from bench.record import Run, summary, write
from bench.workload import Workload, quickstart_workload

THREADS = 2
REPEATS = 3
STEPS = 100
SAME_LOSS = 0.02
"""Largest relative difference of the dev losses."""

OURS, THEIRS = "finetune_trainer", "TRL SFTTrainer"


QUIET_SHARE = 0.1
"""Other programs may take this share of the processor; above it the figure says more about them."""


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
        fit(engine.loss, work.prepared.train, settings, engine.packed, engine.compute.device, lambda: 0.0, report)
        clock.stop()
    return measured(OURS, work, engine, clock)


def train_theirs(work: Workload, folder: Path) -> Run:
    """TRL on the same rows in the same order; no gradient checkpointing, no bf16, since ours has neither here."""
    settings, timer = work.settings, TrainingClock()
    rows = [work.prepared.train.row(row) for step in range(settings.total_steps) for row in rows_of(work, step)]
    dataset = Dataset.from_list(
        [{"input_ids": ids.tolist(), "completion_mask": flags.astype(int).tolist()} for ids, flags in rows]
    )
    lora = work.spec.training.method.lora
    assert lora is not None
    torch.manual_seed(settings.seed)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(work.model),
        train_dataset=dataset,
        peft_config=LoraConfig(
            r=lora.rank, lora_alpha=int(lora.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=settings.total_steps,
            per_device_train_batch_size=settings.rows_per_batch,
            gradient_accumulation_steps=settings.accumulation,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler.value,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            logging_steps=settings.logging_steps,
            seed=settings.seed,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    engine = new_engine(work)
    set_peft_model_state_dict(engine.model, get_peft_model_state_dict(trainer.model))
    return measured(THEIRS, work, engine, timer.clock)


def new_engine(work: Workload) -> Engine:
    """The base with a fresh adapter, as the product makes it."""
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


def main(steps: int) -> int:
    """Run the benchmark and write its result; 1 where the two did not learn the same."""
    quiet_libraries()
    disable_progress_bars()
    disable_progress_bar()
    runs: list[Run] = []
    with TemporaryDirectory() as folder:
        work = quickstart_workload(Path(folder), THREADS, maxSteps=steps)
        if any(len(rows_of(work, step)) != work.settings.effective_batch for step in range(steps)):
            print(f"{steps} steps are more than one epoch holds: choose fewer.", file=sys.stderr)
            return 2
        for _ in range(REPEATS):
            for run in (train_ours(work), train_theirs(work, Path(folder) / "trl")):
                told = f"dev loss {run.dev_loss:.4f}, others took {run.others_share:.0%} of the processor"
                print(f"{run.who:<18} {run.steps_per_second:6.2f} steps/s, {told}", flush=True)
                runs.append(run)
    ours, theirs = (summary(runs, who) for who in (OURS, THEIRS))
    write(runs, ours, theirs, THREADS)
    print(f"{ours.steps_per_second / theirs.steps_per_second:.2f} x")
    if abs(ours.dev_loss / theirs.dev_loss - 1) > SAME_LOSS:
        print(f"The dev losses differ by more than {SAME_LOSS:.0%}: the speeds are not comparable.", file=sys.stderr)
        return 1
    busy = max(run.others_share for run in runs)
    if busy > QUIET_SHARE:
        print(
            f"Other programs took up to {busy:.0%} of the processor: measure again when it is quiet.", file=sys.stderr
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS))
