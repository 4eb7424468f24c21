"""The loss curve, as many points of it as a status holds: which of them stay. Pure."""

from collections.abc import Sequence

from finetune_api.names import STATUS_HISTORY_ROWS
from finetune_api.status import HistoryRow, Metrics, Progress


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
    losses = (metrics.training_loss, metrics.validation_loss)
    if losses == (None, None) or (older and losses == (older[-1].training_loss, older[-1].validation_loss)):
        return list(rows)
    row = HistoryRow(step=progress.step, epoch=progress.epoch, training_loss=losses[0], validation_loss=losses[1])
    return thinned([*older, row])


def _spread(rows: list[HistoryRow], count: int) -> list[HistoryRow]:
    """`count` of the rows, evenly spread; all of them where there are no more."""
    if len(rows) <= count:
        return rows
    return [rows[at * len(rows) // count] for at in range(count)]
