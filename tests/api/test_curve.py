"""Which points of a loss curve a status keeps."""

from itertools import pairwise

from finetune_api.curve import thinned, with_point
from finetune_api.names import STATUS_HISTORY_ROWS
from finetune_api.progress import HistoryRow, Metrics, Progress


def rows(count: int, every: int) -> list[HistoryRow]:
    return [
        HistoryRow(step=step, epoch=step / 10, training_loss=1.0, validation_loss=2.0 if step % every == 0 else None)
        for step in range(1, count + 1)
    ]


def test_a_short_history_is_whole() -> None:
    assert thinned(rows(60, 7)) == rows(60, 7)


def test_a_long_history_keeps_every_evaluation_and_the_newest_row() -> None:
    whole = rows(1001, 50)
    kept = thinned(whole)
    assert len(kept) == STATUS_HISTORY_ROWS
    assert [row for row in whole if row.validation_loss] == [row for row in kept if row.validation_loss]
    assert kept[-1] == whole[-1]
    assert [row.step for row in kept] == sorted({row.step for row in kept})


def test_too_many_evaluations_are_spread_evenly() -> None:
    kept = thinned(rows(1000, 1))
    assert len(kept) == STATUS_HISTORY_ROWS
    gaps = [b.step - a.step for a, b in pairwise(kept)]
    assert max(gaps) <= 2 * min(gaps)


def test_a_curve_grows_by_what_is_new_and_never_beyond_its_bound() -> None:
    curve: list[HistoryRow] = []
    for step in range(1, 1000):
        curve = with_point(curve, Progress(step=step), Metrics(training_loss=1 / step))
        curve = with_point(curve, Progress(step=step, epoch=0.5), Metrics(training_loss=1 / step))
    assert len(curve) == STATUS_HISTORY_ROWS
    assert (curve[0].step, curve[-1].step, curve[-1].epoch) == (1, 999, 0.5)
    assert max(b.step - a.step for a, b in pairwise(curve)) <= 3 * 999 / STATUS_HISTORY_ROWS


def test_a_curve_that_grows_keeps_its_evaluations() -> None:
    curve: list[HistoryRow] = []
    for step in range(1, 400):
        loss = 2.0 - step // 20 / 100 if step >= 20 else None  # Told again until the next evaluation.
        curve = with_point(curve, Progress(step=step), Metrics(training_loss=1 / step, validation_loss=loss))
    assert [row.step for row in curve if row.validation_loss] == list(range(20, 400, 20))


def test_a_loss_that_is_only_told_again_is_no_point() -> None:
    curve = with_point([], Progress(step=1), Metrics(training_loss=2.0))
    assert with_point(curve, Progress(step=2), Metrics(training_loss=2.0)) == curve
    assert with_point(curve, Progress(step=2), Metrics(learning_rate=0.1)) == curve


def test_points_beyond_the_step_that_is_told_give_way() -> None:
    curve = with_point(rows(9, 5), Progress(step=4), Metrics(training_loss=0.5))
    assert [row.step for row in curve] == [1, 2, 3, 4]
    assert curve[-1].training_loss == 0.5
