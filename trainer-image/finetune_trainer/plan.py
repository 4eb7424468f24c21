"""The plan of a run: how large its micro-batches are, and whether activations are kept, so that it fits into memory.

A plan changes time and memory, never the rows of a step, its loss or its gradients. The memory ladder is the list of
ways to train, from the fastest to the smallest; a plan is the first that fits, or, after attempts that had no memory
left all the same, as many further down as there were such attempts. Pure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetune_api.findings import PlanStatus
from finetune_api.names import FailureClass
from finetune_api.training import GradientCheckpointing

from finetune_trainer.errors import RunError

CHECKPOINTED_FROM = 2
"""First rung on which `auto` may compute activations again: smaller micro-batches cost less than a second forward."""

KEPT_TOKENS = 2048
"""`auto` keeps activations in micro-batches of at least this size on any rung: they fill a GPU, so that halving one
costs next to nothing."""

USABLE_SHARE = 0.9
"""Share of the memory that a plan may fill: the rest is for what allocators round up and kernels take for a moment."""

COMPILE_SECONDS = 120
"""Time that compiling takes, forward and backward, for training and evaluation."""

COMPILE_GAIN = 0.1
"""Share of the time of training that compiled layers save; assumed with care, since no GPU has measured it here."""

TRAINING_SHARE = 0.4
"""Share of a GPU's speed in large matrix products that training reaches."""


@dataclass(frozen=True)
class Rung:
    """One way to train."""

    tokens: int
    """Most tokens of a micro-batch, padding included."""
    checkpointing: bool


@dataclass(frozen=True)
class Load:
    """What there is to train, in tokens."""

    largest: int
    """Tokens of the largest micro-batch that `trainBatchSize` makes of the train rows, padding included."""
    longest: int
    """Tokens of the longest row: no micro-batch can be smaller."""


@dataclass(frozen=True)
class Memory:
    """What training may take."""

    bytes: int | None
    """For weights, optimizer and steps; None = nobody can tell."""
    source: str
    """Where the limit comes from, such as `trainer.memory, 16.00 GiB`."""
    cure: str
    """How to get more, such as `raise trainer.memory`."""

    @property
    def available(self) -> int:
        """Bytes that a plan may fill."""
        return int((self.bytes or 0) * USABLE_SHARE)


@dataclass(frozen=True)
class Choice:
    """A rung of the ladder."""

    rung: Rung
    number: int
    """Where it is, from 0."""
    estimate: int | None
    """Peak memory in bytes; None = the model cannot be estimated."""


def ladder(load: Load, wanted: GradientCheckpointing) -> list[Rung]:
    """Every distinct way to train, from the fastest to the smallest."""
    sizes = _halved(load)
    if wanted is not GradientCheckpointing.AUTO:
        return [Rung(size, wanted is GradientCheckpointing.ALWAYS) for size in sizes]
    kept = [size for number, size in enumerate(sizes) if number < CHECKPOINTED_FROM or size >= KEPT_TOKENS]
    again = sizes[len(kept) :] or sizes[-1:]
    return [*(Rung(size, False) for size in kept), *(Rung(size, True) for size in again)]


def _halved(load: Load) -> list[int]:
    """The largest micro-batch, half of it and so on, down to the longest row."""
    sizes = [load.largest]
    while sizes[-1] > load.longest:
        sizes.append(max(-(-sizes[-1] // 2), load.longest))
    return sizes


def choose(rungs: Sequence[Rung], tried: int, cost: Callable[[Rung], int | None], memory: Memory) -> Choice:
    """The first rung that fits into `memory`, and `tried` further down; `cost` estimates a rung's peak in bytes.

    Raises RunError (InvalidConfig, NotEnoughMemory) where not even one row alone fits, or the ladder ends.
    """
    number = _first_that_fits(rungs, cost, memory) + tried
    if number >= len(rungs):
        raise _ladder_ends(rungs[-1], tried, memory)
    return Choice(rungs[number], number, cost(rungs[number]))


def _first_that_fits(rungs: Sequence[Rung], cost: Callable[[Rung], int | None], memory: Memory) -> int:
    estimate = 0
    for number, rung in enumerate(rungs):
        found = cost(rung)
        if found is None or memory.bytes is None or found <= memory.available:
            return number
        estimate = found
    raise _not_enough(rungs[-1], estimate, memory)


def pays_to_compile(operations: float, per_second: float) -> bool:
    """Whether training long enough is left; `operations` there are to do, `per_second` in large matrix products."""
    return training_seconds(operations, per_second) * COMPILE_GAIN > COMPILE_SECONDS


def training_seconds(operations: float, per_second: float) -> float:
    """An estimate of the time that so many operations take."""
    return operations / (per_second * TRAINING_SHARE)


def explained(plan: PlanStatus, reasons: Mapping[str, str]) -> list[str]:
    """The plan as lines of a table: what, how, why."""
    values = {name: _shown(name, value) for name, value in plan.to_json().items()}
    widths = max(map(len, values)), max(map(len, values.values()))
    return [
        f"plan: {name:<{widths[0]}}  {value:<{widths[1]}}  {reasons.get(name, '')}".rstrip()
        for name, value in values.items()
    ]


def gib(count: int) -> str:
    """A size for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return gib(value) if isinstance(value, int) and name.endswith("Bytes") else str(value)


def _not_enough(rung: Rung, estimate: int, memory: Memory) -> RunError:
    message = (
        f"a micro-batch of one row, {rung.tokens} tokens, takes an estimated {gib(estimate)} with activations "
        f"{'computed again' if rung.checkpointing else 'kept'}, but training may take {gib(memory.available)} of "
        f"{memory.source}"
    )
    return RunError(FailureClass.INVALID_CONFIG, "NotEnoughMemory", message, _remedy(rung, memory))


def _ladder_ends(rung: Rung, tried: int, memory: Memory) -> RunError:
    message = (
        f"{tried} attempts had no memory left in {memory.source}, and there is no smaller way to train than "
        f"micro-batches of {rung.tokens} tokens"
    )
    return RunError(FailureClass.INVALID_CONFIG, "NotEnoughMemory", message, _remedy(rung, memory))


def _remedy(rung: Rung, memory: Memory) -> str:
    cure = "" if rung.checkpointing else "set hyperparameters.gradientCheckpointing to auto, "
    words = f"{cure}lower hyperparameters.maxSeqLength, set method.quantization, or {memory.cure}."
    return words[0].upper() + words[1:]
