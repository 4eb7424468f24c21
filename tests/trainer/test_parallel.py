"""Several processes train as one does: the same gradients, weights and numbers, however the rows are shared out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import Stage
from finetune_api.run import StorageAccess
from finetune_api.training import Lora, Optimizer
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.attention import rows_attended
from finetune_trainer.checkpoint import Checkpoints, Origin
from finetune_trainer.compute import compute_for
from finetune_trainer.errors import Termination
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.loss import LossModel
from finetune_trainer.memory import sharded_footprint
from finetune_trainer.pack import micro_batches, packed_batch, share_out
from finetune_trainer.parallel import Team
from finetune_trainer.parts import whole_copy
from finetune_trainer.report import Reporter
from finetune_trainer.shards import gathered, shard
from finetune_trainer.store import open_store
from finetune_trainer.termination import StopSignal
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.decoders import a_decoder, some_rows
from tests.trainer.measured import measured_peak
from tests.trainer.runs import a_run
from tests.trainer.teams import alone, in_team
from tests.trainer.test_fit import SETTINGS

ROWS = some_rows((9, 4, 12, 4, 7, 6, 5, 8, 3, 10))
SHARES = {"even": [0, 1, 2, 3], "uneven": [2, 0, 8], "one empty": [5]}
"""Rows of one step, for two processes: two each, two and one, one and none."""

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 9))
def test_every_row_is_in_one_share_and_none_has_more_than_its_part(sizes: list[int], members: int) -> None:
    shares = share_out(sizes, members)
    assert sorted(at for share in shares for at in share) == list(range(len(sizes)))
    assert max(len(share) for share in shares) <= -(-len(sizes) // members)


def test_shares_weigh_nearly_the_same() -> None:
    sizes = [100, 90, 60, 50, 30, 10, 5, 5]
    assert [sum(sizes[at] for at in share) for share in share_out(sizes, 2)] == [185, 165]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("chosen", SHARES.values(), ids=SHARES)
def test_every_process_has_as_many_micro_batches_and_dummies_have_nothing_to_learn(
    chosen: list[int], packed: bool
) -> None:
    batches = [micro_batches(ROWS, chosen, 1, packed, rank=rank, size=2) for rank in (0, 1)]
    assert len(batches[0]) == len(batches[1]) > 0
    assert sum(batch.supervised for share in batches for batch in share) == ROWS.supervised_in(chosen)
    assert sum(batch.tokens for share in batches for batch in share) == sum(ROWS.lengths[chosen])
    loss = LossModel(a_decoder(), True)
    for batch in (batch for share in batches for batch in share if not batch.supervised):
        with rows_attended(loss.model) if packed else torch.enable_grad():
            total = loss(batch)
        total.backward()
        assert total.item() == 0
        assert all(p.grad is None or not p.grad.any() for p in loss.parameters())


def gradients(team: Team, chosen: list[int], rows_per_batch: int) -> list[Tensor]:
    """Of one step, as `fit` makes them."""
    model = a_decoder()
    loss, supervised = LossModel(model, True), ROWS.supervised_in(chosen)
    with rows_attended(model):
        for batch in micro_batches(ROWS, chosen, rows_per_batch, True, rank=team.rank, size=team.size):
            (loss(batch) / supervised).backward()
    team.sum_gradients(list(model.parameters()))
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@dataclass(frozen=True)
class Outcome:
    """What five steps of Adam at 1e-3 made."""

    weights: list[Tensor]
    numbers: list[list[float]]
    """Loss, gradient norm and epoch of each step."""
    stopped: bool
    """Whether a signal ended it before."""


def trained(team: Team, folder: Path, family: str, method: str = "full", stops: str = "", **changes: Any) -> Outcome:
    """Train from the newest checkpoint of `folder`; `stops`: SIGTERM comes to the last rank at the second step."""
    model, stop = a_decoder(family), StopSignal()
    if method in ("lora", DROPPING):
        attach_adapter(model, Lora(rank=4, alpha=8, dropout=0.5 if method == DROPPING else 0.0), seed=3)
    loss = LossModel(model, True)
    if method == "sharded" and team.size > 1:
        shard(loss, compute_for(0, 1), team.size)
    report = Reporter(a_run(folder, "hf://a/b", [{"name": "d", "uri": "s3://b/d"}]), Stage.TRAIN, Log(only_errors=True))
    store = open_store(f"file://{folder / 'out'}", StorageAccess())
    scratch, origin = folder / f"scratch-{team.rank}", Origin("writer00", 1, "digest", {})
    checkpoints = Checkpoints(store, scratch, origin, 2, report.checkpoint, report.log, team.is_first)
    settings = replace(SETTINGS, total_steps=5, learning_rate=1e-3, save_steps=100, **BY_FOUR | changes)
    counted = iter(range(100))

    def validate(between: Callable[[], None]) -> float:
        # At each step, so this is the second one: everybody stops within the evaluation, or before the third step.
        if stops and next(counted) == 1:
            stop._came = team.rank == team.size - 1
            if stops == MEASURING:
                between()
                raise AssertionError("the evaluation goes on")
        return 1.0

    settings = replace(settings, eval_steps=1)
    with rows_attended(model):
        try:
            curve = fit(loss, ROWS, settings, True, CPU, validate, report, checkpoints, stop, team)
        except Termination:
            return Outcome([], [], stopped=True)
    numbers = [[row["trainingLoss"], row["gradNorm"], row["epoch"]] for row in curve.rows]
    return Outcome([whole_copy(weight) for weight in model.parameters()], numbers, stopped=False)


LONG = some_rows((60, 50, 60, 40, 33, 60, 21, 57), prompt=20)

BY_FOUR: dict[str, Any] = {"rows_per_batch": 1, "accumulation": 4}
TWO_BY_TWO: dict[str, Any] = {"rows_per_batch": 1, "accumulation": 2, "devices": 2}
AT_ONCE: dict[str, Any] = {"rows_per_batch": 4, "accumulation": 1}

KINDS = {
    "copies": ("llama", "full"),
    "adapters": ("llama", "lora"),
    "shards": ("llama", "sharded"),
    "shards-and-one-tensor-for-embeddings-and-head": ("gpt2", "sharded"),
}
STOPPED, MEASURING, STARTED = "stopped-by-two", "stopped-while-they-measure", "started-by-one"
DROPPING = "lora with dropout"


def memory_of_shards(team: Team) -> tuple[int, int]:
    """Estimated and measured peak of a step of a sharded model, in bytes, the shards' own apart."""
    model, batch = a_decoder(hidden_size=256, intermediate_size=512), packed_batch(LONG, range(len(LONG)))
    loss = LossModel(model, True)
    with rows_attended(model):
        found = sharded_footprint(loss, batch, Optimizer.SGD, CPU, team.size, gathered(loss, compute_for(0, 1)))
        shard(loss, compute_for(0, 1), team.size)
        loss(batch).backward()  # FSDP makes its buffers at first use.
        for parameter in loss.parameters():
            parameter.grad = None
        with measured_peak() as peak:
            loss(batch).backward()
    return found.step, peak[0]


def several(team: Team, folder: Path) -> dict[str, Any]:
    """All that two processes do for these tests, since starting them takes longest."""
    found: dict[str, Any] = {name: gradients(team, chosen, 1) for name, chosen in SHARES.items()}
    for kind, (family, method) in KINDS.items():
        found[kind] = trained(team, folder / kind, family, method, **TWO_BY_TWO)
    for stops in (STOPPED, MEASURING):
        found[stops] = trained(team, folder / stops, "llama", "sharded", stops, **TWO_BY_TWO)
    found[STARTED] = trained(team, folder / STARTED, "llama", "sharded", **TWO_BY_TWO)
    for again in ("first", "again"):
        found[f"{DROPPING} {again}"] = trained(team, folder / f"dropping-{again}", "llama", DROPPING, **TWO_BY_TWO)
    found["mask"] = torch.nn.functional.dropout(torch.ones(64), 0.5)
    found["memory"] = memory_of_shards(team)
    found["words"] = (team.any(team.rank == 1), team.any(False), team.from_first(lambda: 7), team.from_all(team.rank))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they work; one process has begun a training there."""
    folder = tmp_path_factory.mktemp("two")
    assert alone(trained, folder / STARTED, "llama", "full", STOPPED).stopped
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What both processes found."""
    return in_team(2, several, folder)


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Relative distance of all tensors together."""
    ours, theirs = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, wanted))
    return float((ours - theirs).norm() / theirs.norm())


def assert_same_training(found: Outcome, wanted: Outcome) -> None:
    assert distance(found.weights, wanted.weights) < 1e-4
    torch.testing.assert_close(torch.tensor(found.numbers), torch.tensor(wanted.numbers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHARES)
def test_two_processes_have_the_gradients_of_one(two: list[dict[str, Any]], name: str) -> None:
    wanted = alone(gradients, SHARES[name], 4)
    for rank in two:
        assert distance(rank[name], wanted) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_one_by_four_two_by_two_and_four_by_one_train_the_same(
    two: list[dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    wanted = alone(trained, tmp_path, *KINDS[kind])
    for rank in two:
        assert_same_training(rank[kind], wanted)
    assert all(torch.equal(*pair) for pair in zip(two[0][kind].weights, two[1][kind].weights, strict=True))


def test_four_at_once_are_one_by_four(tmp_path: Path) -> None:
    at_once = alone(partial(trained, **AT_ONCE), tmp_path / "at-once", "llama")
    by_four = alone(partial(trained, **BY_FOUR), tmp_path / "by-four", "llama")
    assert_same_training(at_once, by_four)


@pytest.mark.parametrize("stops", [STOPPED, MEASURING])
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_one_process_goes_on(
    two: list[dict[str, Any]], folder: Path, tmp_path: Path, stops: str
) -> None:
    assert [rank[stops].stopped for rank in two] == [True, True]
    saved = (folder / stops / "out" / "checkpoints").iterdir()
    assert max(path.name for path in saved) == "step-2-writer00"
    assert_same_training(alone(trained, folder / stops, "llama"), alone(trained, tmp_path, "llama"))


def test_two_processes_go_on_from_the_checkpoint_of_one(two: list[dict[str, Any]], tmp_path: Path) -> None:
    assert_same_training(two[0][STARTED], alone(trained, tmp_path, "llama"))


def test_the_memory_of_a_step_in_shards_is_estimated(two: list[dict[str, Any]]) -> None:
    """Which buffer goes before the next one comes is a matter of timing: the fuller process counts, with room above."""
    estimate, measured = (max(sizes) for sizes in zip(*(found["memory"] for found in two), strict=True))
    assert 0.95 < estimate / measured < 1.25


def test_dropout_drops_other_things_in_each_process_and_the_same_when_run_again(two: list[dict[str, Any]]) -> None:
    assert not torch.equal(two[0]["mask"], two[1]["mask"])
    first, again = ([rank[f"{DROPPING} {time}"] for rank in two] for time in ("first", "again"))
    for ours, same in zip(first, [*first[1:], again[0]], strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours.weights, same.weights, strict=True))
    assert distance(first[0].weights, two[0]["adapters"].weights) > 1e-4


def test_words_reach_every_process(two: list[dict[str, Any]]) -> None:
    assert [rank["words"] for rank in two] == [(True, False, 7, [0, 1])] * 2


def test_a_team_of_one_answers_itself() -> None:
    team = Team()
    assert (team.any(True), team.any(False), team.from_first(lambda: 7), team.from_all(8)) == (True, False, 7, [8])
