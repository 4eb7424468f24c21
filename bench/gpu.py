"""Training speed and peak memory on one GPU, and what each technique is worth, in one unattended run.

    python -m bench.gpu [--device cuda|cpu] [--tiny] [--minutes 8]

Random weights are made on the device, so nothing is downloaded: the shape of Llama-3.1-8B with LoRA r16 on all linear
layers in bf16, the same as QLoRA, and a smaller shape trained in full; rows of up to 4,096 random ids. Then each
technique is taken away from the first of them, or added, and TRL's SFTTrainer trains the same rows where it is
installed. What the time does not allow is left out, and the table says so. `--tiny` is a small shape that proves the
script on a CPU; its figures mean nothing.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from finetune_api.training import Optimizer
from finetune_trainer import attention
from finetune_trainer.compute import Compute
from finetune_trainer.memory import Ledger, checkpointing
from finetune_trainer.optimizer import clip_gradients, make_optimizer, trained_parameters
from finetune_trainer.pack import micro_batches, step_rows
from finetune_trainer.plan import gib
from finetune_trainer.quiet import quiet_libraries

from bench.gpu_models import SHAPES, TINY_SHAPES, Shape, compile_layers, engine_for, some_rows, trl_training
from bench.machine import machine
from bench.record import RESULTS

WARMUP_STEPS, STEPS = 2, 6


@dataclass(frozen=True)
class Variant:
    """One training to measure."""

    name: str
    shape: str = "8B"
    method: str = "lora"
    packed: bool = True
    varlen: bool = True
    bare_head: bool = True
    checkpointed: bool = False
    compiled: bool = False
    trl: bool = False


VARIANTS = (
    Variant("LoRA r16"),
    Variant("LoRA r16, TRL SFTTrainer padded", trl=True),
    Variant("LoRA r16, layers compiled", compiled=True),
    Variant("LoRA r16, activations computed again", checkpointed=True),
    Variant("LoRA r16 without packing", packed=False),
    Variant("LoRA r16 without the varlen kernel", varlen=False),
    Variant("LoRA r16 without tiled loss", bare_head=False),
    Variant("QLoRA r16", method="qlora"),
    Variant("full, smaller shape", shape="small", method="full"),
)


@dataclass(frozen=True)
class Result:
    """What came of a variant."""

    variant: Variant
    seconds: float = 0.0
    tokens: int = 0
    """Tokens of rows, padding left out."""
    peak_bytes: int = 0
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
        return f"| {self.variant.name} | {speed} | {steps} | {gib(self.peak_bytes)} | |"


def measure(variant: Variant, shape: Shape, device: torch.device) -> Result:
    """Train one variant; what stands in its way becomes a line of the table."""
    with TemporaryDirectory() as folder:
        try:
            train = trl_training(shape, device, Path(folder)) if variant.trl else our_training(variant, shape, device)
            train(WARMUP_STEPS)
            with Meter(device) as meter:
                tokens = train(STEPS)
            return Result(variant, meter.seconds, tokens, meter.peak_bytes)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError) as error:
            return Result(variant, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


class Meter:
    """Seconds of a block, the device's work included, and its peak memory; on CPU the Ledger's, without the weights."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._ledger = device, Ledger()
        self.seconds, self.peak_bytes = 0.0, 0

    def __enter__(self) -> "Meter":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            torch.cuda.synchronize(self._device)
        else:
            self._ledger.__enter__()
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._ledger.__exit__(None, None, None)
            self.peak_bytes = self._ledger.peak
        self.seconds = time.monotonic() - self._began


def our_training(variant: Variant, shape: Shape, device: torch.device) -> Callable[[int], int]:
    """Steps of the product's parts; a call trains so many and returns their tokens."""
    compute = Compute(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    engine = engine_for(shape, variant.method, compute, variant.packed, variant.bare_head)
    parameters, rows = trained_parameters(engine.loss), some_rows(shape)
    optimizer = make_optimizer(Optimizer.ADAMW, parameters, 1e-5, 0.0)
    if variant.compiled:
        compile_layers(engine.inner)

    def one_step(step: int) -> int:
        chosen = step_rows(len(rows), shape.rows_per_step, 0, step)
        batches = micro_batches(rows, chosen, shape.rows_per_step, engine.packed, shape.tokens_per_batch)
        supervised = sum(batch.supervised for batch in batches)
        for batch in batches:
            (engine.loss(batch.to(device)) / supervised).backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sum(batch.tokens for batch in batches)

    def train(steps: int) -> int:
        with ExitStack() as stack:
            stack.enter_context(engine.attending())
            stack.enter_context(checkpointing(engine.inner, variant.checkpointed))
            stack.enter_context(with_kernel(variant.varlen))
            return sum(one_step(step) for step in range(steps))

    return train


@contextmanager
def with_kernel(wanted: bool) -> Iterator[None]:
    """Inside, packed rows go through the variable-length kernel where the device has it, or never."""
    if wanted:
        yield
        return
    with patch.object(attention, "_fits_kernel", lambda *_: False):
        yield


def page(results: Sequence[Result], shapes: dict[str, Shape], device: torch.device) -> str:
    """The table."""
    facts = machine()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{facts['cpu']}, a trial of the script"
    lines = [
        "# Training on one GPU, random weights",
        "",
        f"{where}; torch {torch.__version__}. {WARMUP_STEPS} steps to warm up, {STEPS} measured.",
        *(f"{name}: {shape.words}." for name, shape in shapes.items()),
        "Made by `python -m bench.gpu`.",
        "",
        "| training | tokens/s without padding | steps/s | peak memory | remark |",
        "|--|--|--|--|--|",
    ]
    return "\n".join([*lines, *(result.row for result in results), ""])


def main() -> int:
    """Measure every variant that the time allows; the last line is the ratio to TRL, where both have a figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a small shape that proves the script")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further training after so long")
    asked = parser.parse_args()
    quiet_libraries()
    device, shapes = torch.device(asked.device), TINY_SHAPES if asked.tiny else SHAPES
    results: list[Result] = []
    began, longest = time.monotonic(), 0.0
    for variant in VARIANTS:
        started = time.monotonic()
        if started - began + longest > 60 * asked.minutes:
            results.append(Result(variant, problem="left out: no time"))
            continue
        results.append(measure(variant, shapes[variant.shape], device))
        longest = max(longest, time.monotonic() - started)
        print(results[-1].row, flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write(results, shapes, device, asked.tiny)
    ours, theirs = results[0], results[1]
    if theirs.tokens_per_second:
        print(f"{ours.tokens_per_second / theirs.tokens_per_second:.2f} x")
    return 1 if ours.problem else 0


def write(results: Sequence[Result], shapes: dict[str, Shape], device: torch.device, tiny: bool) -> None:
    """Print the table; `results/gpu-<device>.json` and `.md` but for a trial."""
    text = page(results, shapes, device)
    print(text)
    if tiny:
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    path = RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    record = {"machine": machine(), "device": name, "results": [asdict(result) for result in results]}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
