"""Training steps per second: our loop against TRL's SFTTrainer, on the quickstart's model and rows.

    python -m bench.steps [STEPS]

Both train the same rows in the same steps from the same adapter's seed, in fp32 with two threads; TRL pads as it does
by default. They take turns, and the median counts. Loading and evaluation are not timed. The dev loss of both is
measured by the same code and must agree, else the figure would mean nothing; nor does it where other programs took
much of the processor, which is written beside it.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import disable_progress_bars
from finetune_trainer.quiet import quiet_libraries
from transformers.utils.logging import disable_progress_bar

from bench.record import Run, summary, write
from bench.trainings import OURS, THREADS, TRL, rows_of, train_ours, train_trl
from bench.workload import quickstart_workload

REPEATS = 3
STEPS = 100
SAME_LOSS = 0.02
"""Largest relative difference of the dev losses."""

QUIET_SHARE = 0.1
"""Other programs may take this share of the processor; above it the figure says more about them."""


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
            for run in (train_ours(work), train_trl(work, Path(folder) / "trl")):
                told = f"dev loss {run.dev_loss:.4f}, others took {run.others_share:.0%} of the processor"
                print(f"{run.who:<18} {run.steps_per_second:6.2f} steps/s, {told}", flush=True)
                runs.append(run)
    ours, theirs = (summary(runs, who) for who in (OURS, TRL))
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
