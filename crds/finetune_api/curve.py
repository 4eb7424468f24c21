"""The loss curve, as many points of it as a status holds: which of them stay. Pure."""

from collections.abc import Sequence

from finetune_api.names import STATUS_HISTORY_ROWS
from finetune_api.progress import HistoryRow, Metrics, Progress


def thinned(rows: Sequence[HistoryRow], limit: int = STATUS_HISTORY_ROWS) -> list[HistoryRow]:
    """At most `limit` rows of the curve, evenly spread; evaluation rows and the newest are the last to go."""
    if len(rows) <= limit:
        return list(rows)
    *older, newest = rows
    evaluations = [row for row in older if row.validation_loss is not None]
    others = [row for row in older if row.validation_loss is None]
    room = limit - 1
    kept = _spread(evaluations, room)
    kept += _spread(others, room - len(kept))
    return [*sorted(kept, key=lambda row: row.step), newest]


def with_point(rows: Sequence[HistoryRow], progress: Progress, metrics: Metrics) -> list[HistoryRow]:
    """The curve with the newest losses at its end, for a trainer that sends no curve of its own.

    A loss that is told again, while none is newer, is no point of the curve; what was told of later steps, by an
    attempt that went further than the checkpoint, gives way.
    """
    older = [row for row in rows if row.step < progress.step]
    training = _unless_told(metrics.training_loss, [row.training_loss for row in older])
    validation = _unless_told(metrics.validation_loss, [row.validation_loss for row in older])
    if training is None and validation is None:
        return list(rows)
    row = HistoryRow(step=progress.step, epoch=progress.epoch, training_loss=training, validation_loss=validation)
    longer = [*older, row]
    return longer if len(longer) <= STATUS_HISTORY_ROWS else _without_the_closest(longer)


def _unless_told(loss: float | None, earlier: Sequence[float | None]) -> float | None:
    """The loss, unless it is the one that was told last."""
    return None if loss == next((known for known in reversed(earlier) if known is not None), None) else loss


def _without_the_closest(rows: list[HistoryRow]) -> list[HistoryRow]:
    """The curve without the point that lies closest between its neighbours; evaluations go last.

    To thin a curve evenly again and again would always take the point before the newest one.
    """
    inner = range(1, len(rows) - 1)
    missed_least = [at for at in inner if rows[at].validation_loss is None] or list(inner)
    closest = min(missed_least, key=lambda at: rows[at + 1].step - rows[at - 1].step)
    return [*rows[:closest], *rows[closest + 1 :]]


def _spread(rows: list[HistoryRow], count: int) -> list[HistoryRow]:
    """`count` of the rows, evenly spread; all of them where there are no more."""
    if len(rows) <= count:
        return rows
    return [rows[at * len(rows) // count] for at in range(count)]
