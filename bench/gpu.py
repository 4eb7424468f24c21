"""Training speed and peak memory on one GPU, and what each technique is worth, in one unattended run.

    python -m bench.gpu [--device cuda|cpu] [--tiny] [--minutes 7.5]
    python -m bench.gpu --estimate GIB

Random weights are made on the device, so nothing is downloaded: the shape of Llama-3.1-8B with LoRA r16 on all linear
layers in bf16, the same as QLoRA, and a smaller shape trained in full; rows of up to 4,096 random ids. Then each
technique is taken away from the first of them, or added, and TRL's SFTTrainer trains the same rows where it is
installed. Each training is a process of its own, in micro-batches that the product's planner finds to fit. None runs
longer than the time that is left: what it does not allow is left out, and the table says so. `--tiny` is a small shape
that proves the script on a CPU; its figures mean nothing. `--estimate` plans for a GPU of so much memory, without one.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from finetune_api.training import GradientCheckpointing
from finetune_trainer.errors import RunError
from finetune_trainer.plan import Memory, gib
from finetune_trainer.quiet import quiet_libraries

from bench.gpu_models import SHAPES, TINY_SHAPES, Shape
from bench.gpu_trainings import STEPS, WARMUP_STEPS, Variant, described, measured, planned_without_gpu
from bench.machine import machine
from bench.record import RESULTS

LONGEST_SECONDS = 150
"""No training takes longer; compiling takes most of it."""

FAREWELL_SECONDS = 10
"""A process that has told its result has so long to end."""

VARIANTS = (
    Variant("LoRA r16"),
    Variant("LoRA r16, TRL SFTTrainer padded", trl=True),
    Variant("QLoRA r16", method="qlora"),
    Variant("full, smaller shape", shape="small", method="full"),
    Variant("LoRA r16 without packing", packed=False),
    Variant("LoRA r16 without the varlen kernel", varlen=False),
    Variant("LoRA r16 with cuDNN's varlen kernel", cudnn=True),
    Variant("LoRA r16 without tiled loss", bare_head=False),
    Variant("LoRA r16, activations always computed again", recomputing=GradientCheckpointing.ALWAYS),
    Variant("LoRA r16, layers compiled", compiled=True, recomputing=GradientCheckpointing.NEVER),
)


@dataclass(frozen=True)
class Result:
    """What came of a variant."""

    variant: Variant
    seconds: float = 0.0
    tokens: int = 0
    """Tokens of rows, padding left out."""
    peak_bytes: int = 0
    remark: str = ""
    device: str = ""
    problem: str = ""
    """Why there is no figure."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def row(self) -> str:
        """Its line of the table."""
        if self.problem:
            return f"| {self.variant.name} | – | – | – | {self.problem} |"
        speed, steps = f"{self.tokens_per_second:,.0f}", f"{STEPS / self.seconds:.2f}"
        return f"| {self.variant.name} | {speed} | {steps} | {gib(self.peak_bytes)} | {self.remark} |"


def in_a_process(variant: Variant, shape: Shape, device: str, seconds: float) -> Result:
    """Measure one variant in a process that is killed after so long: nothing of one is left for the next."""
    # No fork: CUDA does not survive one, and some library asks for it at import.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(variant, shape, device, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return Result(variant, problem=f"took longer than {seconds:.0f} s")
        found: Result = ours.recv()
        process.join(FAREWELL_SECONDS)
        return found
    except EOFError:
        process.join()
        return Result(variant, problem=f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def tell(variant: Variant, shape: Shape, device: str, to: Connection) -> None:
    """Measure one variant; what stands in its way becomes a line of the table."""
    quiet_libraries()
    with TemporaryDirectory() as folder:
        try:
            meter = measured(variant, shape, torch.device(device), Path(folder))
            name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
            to.send(Result(variant, meter.seconds, meter.tokens, meter.peak_bytes, meter.remark, name))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError, RunError) as error:
            to.send(Result(variant, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"))


def all_measured(shapes: dict[str, Shape], device: str, minutes: float) -> list[Result]:
    """Every variant that the time allows, told as it comes."""
    results: list[Result] = []
    end = time.monotonic() + 60 * minutes
    for variant in VARIANTS:
        left = end - time.monotonic()
        found = Result(variant, problem="left out: no time")
        if left > 0:
            found = in_a_process(variant, shapes[variant.shape], device, min(left, LONGEST_SECONDS))
        results.append(found)
        print(found.row, flush=True)
    return results


def page(results: Sequence[Result], shapes: dict[str, Shape], device: str) -> str:
    """The table."""
    lines = [
        "# Training on one GPU, random weights",
        "",
        f"{device}; torch {torch.__version__}. {WARMUP_STEPS} steps to warm up, {STEPS} measured.",
        *(f"{name}: {shape.words}." for name, shape in shapes.items()),
        "Made by `python -m bench.gpu`.",
        "",
        "| training | tokens/s without padding | steps/s | peak memory | remark |",
        "|--|--|--|--|--|",
    ]
    return "\n".join([*lines, *(result.row for result in results), ""])


def estimates(shapes: dict[str, Shape], memory_gib: float) -> list[str]:
    """What the planner would do on a GPU with so much memory, one line for each training that differs in it."""
    memory = Memory(int(memory_gib * 2**30), f"a GPU with {memory_gib:g} GiB", "choose a bigger GPU")
    lines = ["| training | plan |", "|--|--|"]
    for variant in VARIANTS:
        if variant.is_planned_apart:
            try:
                told = described(planned_without_gpu(variant, shapes[variant.shape], memory))
            except RunError as error:
                told = error.message
            lines.append(f"| {variant.name} | {told} |")
    return lines


def main() -> int:
    """Measure every variant that the time allows; the last line is the ratio to TRL, where both have a figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a small shape that proves the script")
    parser.add_argument("--minutes", type=float, default=7.5, help="the whole run takes no longer")
    parser.add_argument("--estimate", type=float, metavar="GIB", help="only plan, for a GPU of so much memory")
    asked = parser.parse_args()
    quiet_libraries()
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # As the product's command does.
    shapes = TINY_SHAPES if asked.tiny else SHAPES
    if asked.estimate is not None:
        print("\n".join(estimates(shapes, asked.estimate)))
        return 0
    results = all_measured(shapes, asked.device, asked.minutes)
    write(results, shapes, asked.tiny)
    ours, theirs = results[0], results[1]
    if theirs.tokens_per_second:
        print(f"{ours.tokens_per_second / theirs.tokens_per_second:.2f} x")
    return 1 if ours.problem else 0


def write(results: Sequence[Result], shapes: dict[str, Shape], tiny: bool) -> None:
    """Print the table; `results/gpu-<device>.json` and `.md` but for a trial."""
    name = next((result.device for result in results if result.device), "no device")
    text = page(results, shapes, f"{machine()['cpu']}, a trial of the script" if tiny else name)
    print(text)
    if tiny or not any(result.device for result in results):
        return
    path = RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    record = {"machine": machine(), "device": name, "results": [asdict(result) for result in results]}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
