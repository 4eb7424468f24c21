"""Seconds from the start of a train process to its first optimizer step, and what its imports take of them.

    python -m bench.startup [REPEATS]

The quickstart's model, rows and method, prepared once; each repeat is a process of its own, as in a pod. The imports
are measured alone, since they are the same for every model. Prints a table; the machine and its load belong beside it.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.workload import quickstart_workload

REPEATS = 3
THREADS = 2
FIRST_STEP = "step 1/"
IMPORTS = ("numpy", "torch", "transformers", "bitsandbytes", "peft", "finetune_trainer.train")


def seconds_to_first_step(run_file: Path) -> float:
    """From fork to the log line of step 1; what comes after is cut off."""
    began = time.monotonic()
    command = [sys.executable, "-m", "finetune_trainer", "train", "--run", str(run_file)]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if FIRST_STEP in line:
                seconds = time.monotonic() - began
                process.kill()
                return seconds
    raise RuntimeError("no step was taken: " + "".join(lines[-3:]))


def seconds_to_import(module: str) -> float:
    """Of a fresh process that imports `module` and ends."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def main(repeats: int) -> None:
    """Measure and print."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        work = quickstart_workload(folder, THREADS, maxSteps=2, epochs=1, loggingSteps=1)
        run_file = folder / "run.json"
        run_file.write_text(work.spec.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        rows = [("train, to its first step", median(seconds_to_first_step(run_file) for _ in range(repeats)))]
    rows += [(f"import {module}", median(seconds_to_import(module) for _ in range(repeats))) for module in IMPORTS]
    print(f"| what | seconds, median of {repeats} |\n| -- | --: |")
    for what, seconds in rows:
        print(f"| {what} | {seconds:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS)
