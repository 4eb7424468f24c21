"""Training speed: our loop against TRL's SFTTrainer and transformers' Trainer, LoRA and full, in one run.

    python -m bench.trainer [STEPS]

stories260k on the rows of GSM8K that fit into 512 tokens, 8 rows a step, the same rows in the same order for all but
`group_by_length`, which sorts them itself; fp32, two threads. We and the others each have a process and take turns, and
the median counts. Only tokens of rows count, padding does not. The dev loss of each is measured by the same code and
must be the same within a percent, else a figure would mean nothing. Peak memory is that of the first steps, in a run of
its own.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import disable_progress_bars
from finetune_trainer.quiet import quiet_libraries
from transformers.utils.logging import disable_progress_bar

from bench.record import Run, Table
from bench.trainings import (
    HF,
    OURS,
    THREADS,
    TRL,
    TRL_GROUPED,
    memory_told,
    rows_of,
    train_hf,
    train_ours,
    train_trl,
)
from bench.workload import GSM8K, STORIES, Workload, gsm8k_workload

STEPS = 20
REPEATS = 3
MEMORY_STEPS = 2
"""Steps of the run that memory is told of."""

ROWS_PER_STEP = 8
SAME_LOSS = 0.01
"""Largest relative difference of the dev losses."""

QUIET_SHARE = 0.1
"""Other programs may take this share of the processor; above it the figure says more about them."""

METHODS: dict[str, dict[str, Any]] = {
    "LoRA r16": {"type": "lora", "lora": {"rank": 16, "alpha": 32}},
    "full": {"type": "full"},
}
TARGETS = {"LoRA r16": 1.8, "full": 1.5}
"""Ratio to TRL, padded, that we want to reach."""

Trainer = Callable[[Workload], Run]


def trainers(folder: Path) -> dict[str, Trainer]:
    """Everybody who takes part, ours first."""
    return {
        OURS: train_ours,
        TRL: partial(train_trl, folder=folder),
        TRL_GROUPED: partial(train_trl, folder=folder, sampling="group_by_length"),
        HF: partial(train_hf, folder=folder),
    }


def measure(work: Workload, folder: Path, repeats: int) -> tuple[list[Run], dict[str, int]]:
    """All runs of one method, and the peak memory of each trainer in bytes."""
    runs: list[Run] = []
    with ExitStack() as stack:
        homes = {who: stack.enter_context(a_process()) for who in ("ours", "theirs")}
        takers = [(homes["ours" if who == OURS else "theirs"], who, train) for who, train in trainers(folder).items()]
        peaks = {who: home.submit(peak_memory, train, work).result() for home, who, train in takers}
        for _ in range(repeats):
            for home, who, train in takers:
                run = home.submit(train, work).result()
                told = f"dev loss {run.dev_loss:.4f}, others took {run.others_share:.0%} of the processor"
                print(f"  {who:<32} {run.tokens_per_second:8,.0f} tokens/s, {told}", flush=True)
                runs.append(run)
    return runs, peaks


def a_process() -> ProcessPoolExecutor:
    """A process of its own, so that nothing we set reaches the others: threads, registered attention, memory kept."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=be_quiet)


def be_quiet() -> None:
    """No bars and no advice from libraries."""
    quiet_libraries()
    disable_progress_bars()
    disable_progress_bar()


def peak_memory(train: Trainer, work: Workload) -> int:
    """Of the first steps, in bytes."""
    with memory_told() as peak:
        train(work.first(MEMORY_STEPS))
    return peak[0]


def problems(table: Table) -> list[str]:
    """Why the figures are not to be trusted, if they are not."""
    found = []
    for method, runs in table.runs.items():
        losses = [run.dev_loss for run in runs]
        if max(losses) / min(losses) - 1 > SAME_LOSS:
            found.append(f"{method}: the dev losses differ by more than {SAME_LOSS:.0%}: the speeds do not compare.")
    busy = max(run.others_share for runs in table.runs.values() for run in runs)
    if busy > QUIET_SHARE:
        found.append(f"Other programs took up to {busy:.0%} of the processor: measure again when it is quiet.")
    return found


def main(steps: int, repeats: int = REPEATS) -> int:
    """Run everything, write the table, print the ratio last; 1 where the figures are not to be trusted."""
    if not (STORIES.is_dir() and GSM8K.is_file()):
        print(f"The model and rows of this benchmark are not in {STORIES.parents[1].name}/.", file=sys.stderr)
        return 2
    be_quiet()
    table = Table("Training speed on GSM8K with stories260k", "make bench-trainer", THREADS, OURS, TRL)
    for method, fields in METHODS.items():
        print(method, flush=True)
        with TemporaryDirectory() as folder:
            rows = 2 * ROWS_PER_STEP * steps + 200
            size = {"trainBatchSize": ROWS_PER_STEP, "maxSteps": steps, "maxSeqLength": 512}
            work = gsm8k_workload(Path(folder), THREADS, fields, rows, **size)
            assert all(len(rows_of(work, step)) == ROWS_PER_STEP for step in range(steps)), "more than one epoch"
            table.add(method, *measure(work, Path(folder) / "rivals", repeats))
    table.write("trainer")
    found = problems(table)
    for problem in found:
        print(problem, file=sys.stderr)
    for method in METHODS:
        print(f"{method}: {table.ratio(method):.2f} x (to reach: {TARGETS[method]} x)")
    print(f"{min(table.ratio(method) for method in METHODS):.2f} x")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) if len(sys.argv) > 1 else main(STEPS))
