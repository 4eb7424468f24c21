"""Which run's pod a report token belongs to, asked of the API server as rarely as it is safe.

A token that is good is believed for some minutes, one that is not is refused for some seconds without asking again,
and an address that keeps sending bad ones is not asked about at all: a flood of forged reports must not become a flood
of requests to the API server.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.run import RunIdentity

from finetune_operator.allowance import Allowance
from finetune_operator.callers import Caller, Callers

BELIEVED_SECONDS = 300.0
"""How long a token that belongs to a pod of a run is believed."""

REFUSED_SECONDS = 30.0
"""How long one that does not is refused unasked."""

REMEMBERED = 20_000
"""Most tokens remembered; beyond it those that were seen first are asked about again."""

REVIEWS = 16
"""Tokens that are asked about at the same time."""

WAITING = 5_000
"""Most tokens that wait to be asked about: those of all runs, once after a restart."""

BAD_TOKENS_AT_ONCE = 20
BAD_TOKENS_PER_SECOND = 0.2
"""How many bad tokens one address may send before those that nobody knows are refused unasked."""


class TooManyUnknown(Exception):
    """A token that nobody knows is not asked about now: too many others wait, or this address has sent bad ones."""


@dataclass(frozen=True)
class Sender:
    """A pod of a run, and which attempt it works on."""

    pod_uid: str
    identity: RunIdentity
    stage: Stage
    attempt: int


class Senders:
    """Whoever may report, by token. Only the digests of tokens are kept."""

    def __init__(self, callers: Callers, clock: Callable[[], float] = time.monotonic) -> None:
        self._callers = callers
        self._clock = clock
        self._known: dict[bytes, tuple[float, Sender | None]] = {}
        """Until when, and who; None for a token that belongs to nobody."""
        self._bad = Allowance(BAD_TOKENS_PER_SECOND, BAD_TOKENS_AT_ONCE, clock)
        self._reviews = asyncio.Semaphore(REVIEWS)
        self._asking: dict[bytes, asyncio.Task[Sender | None]] = {}

    async def sender(self, token: str, address: str) -> Sender | None:
        """Whose token it is; None for one that belongs to no pod of a run.

        Raises TooManyUnknown; ClusterUnreachable and Refused where the API server cannot say.
        """
        if not token:
            return None
        digest = sha256(token.encode(errors="surrogateescape")).digest()
        until, sender = self._known.get(digest, (0.0, None))
        if until > self._clock():
            return sender
        if digest not in self._asking:
            if len(self._asking) >= WAITING:
                raise TooManyUnknown
            self._asking[digest] = asyncio.create_task(self._find_out(digest, token, address), name="token-review")
        # Shielded: whoever hangs up must not take the answer from the others who wait for it.
        return await asyncio.shield(self._asking[digest])

    async def _find_out(self, digest: bytes, token: str, address: str) -> Sender | None:
        try:
            async with self._reviews:
                if self._bad.left(address) < 1:
                    raise TooManyUnknown
                found = await self._ask(token)
            if found is None:
                self._bad.take(address)
            self._remember(digest, found)
            return found
        finally:
            del self._asking[digest]

    async def _ask(self, token: str) -> Sender | None:
        caller = await self._callers.review_token(token)
        labels = await self._callers.job_labels(caller) if caller else None
        return _sender(caller, labels) if caller and labels else None

    def _remember(self, digest: bytes, sender: Sender | None) -> None:
        self._known.pop(digest, None)
        self._known[digest] = (self._clock() + (BELIEVED_SECONDS if sender else REFUSED_SECONDS), sender)
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]


def _sender(caller: Caller, labels: dict[str, str]) -> Sender | None:
    """None where the labels of its Job name no attempt: somebody has edited them."""
    stage, attempt = labels.get(names.LABEL_STAGE, ""), labels.get(names.LABEL_ATTEMPT, "")
    if stage not in set(Stage) or not attempt.isdecimal():
        return None
    name, uid = labels.get(names.LABEL_NAME, ""), labels.get(names.LABEL_UID, "")
    identity = RunIdentity(namespace=caller.namespace, name=name, uid=uid)
    return Sender(caller.pod_uid, identity, Stage(stage), int(attempt))
