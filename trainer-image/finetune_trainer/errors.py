"""What can go wrong in a run, as one exception type: a class that decides what happens next, and words for a person.

Whoever raises knows the class; `__main__` alone turns it into a `Failure` and an exit code.
"""

from collections.abc import Collection

from finetune_api.failures import POLICIES, TERMINATED
from finetune_api.names import Exit, FailureClass
from finetune_api.status import Failure
from finetune_api.words import one_line, shortened

MESSAGE_LENGTH = 2048
"""Longest message that the status takes."""

REMEDY_LENGTH = 1024
"""Longest remedy that the status takes."""


class RunError(Exception):
    """A run cannot go on: what is wrong and where (`message`, one line), and what to do (`remedy`)."""

    def __init__(self, failure_class: FailureClass, reason: str, message: str, remedy: str = "") -> None:
        self.failure_class = failure_class
        self.reason = reason
        self.message = one_line(message)
        self.remedy = one_line(remedy) or POLICIES[failure_class].remedy
        super().__init__(f"{reason}: {self.message}")

    def failure(self) -> Failure:
        """The failure as the status shows it."""
        code = POLICIES[self.failure_class].exit_code
        return Failure(
            failure_class=self.failure_class,
            reason=self.reason,
            message=shortened(self.message, MESSAGE_LENGTH),
            remedy=shortened(self.remedy, REMEDY_LENGTH),
            exit_code=None if code is None else int(code),
        )


def told(failure: Failure) -> str:
    """A failure in one line of the log: what is wrong, a full stop, and what to do."""
    return f"{failure.reason}: {failure.message.rstrip('.')}. {failure.remedy}".rstrip()


def not_finite(what: str) -> RunError:
    """Training led to numbers that are none (Diverged); `what` says which."""
    return RunError(FailureClass.DIVERGED, "NotFinite", f"{what}; nothing is published")


class RowError(Exception):
    """What is wrong with one row, and in which column where that is known."""

    def __init__(self, message: str, column: str | None = None, line: int | None = None) -> None:
        self.message = message
        self.column = column
        self.line = line
        super().__init__(message)

    def at(self, line: int) -> "RowError":
        """The same problem, on a line."""
        return RowError(self.message, self.column, line)


class Termination(BaseException):
    """SIGTERM came: leave soon. No `Exception`, so that no handler of errors swallows it."""

    exit_code = Exit.TERMINATED

    @staticmethod
    def failure() -> Failure:
        """As the status shows it."""
        return RunError(FailureClass.PREEMPTED, TERMINATED, "the pod was told to stop (SIGTERM)").failure()


def quoted(names: Collection[str], most: int = 20) -> str:
    """Names for a message: `'a', 'b' and 3 more`; sorted where they have no order of their own."""
    ordered = sorted(names) if isinstance(names, set) else list(names)
    shown = ", ".join(f"'{shortened(name, 80)}'" for name in ordered[:most])
    rest = len(ordered) - most
    return (f"{shown} and {rest} more" if rest > 0 else shown) or "none"
