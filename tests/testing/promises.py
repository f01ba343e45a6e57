"""The promises of the contract suite in words, and the error for a broken promise in any suite."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from .deadlines import Never, TooLate, until

ANSWERS = "`claim` returns a lease that is held or pending, or raises `LeaseConflict`"
KEEPS_LEASE = "a lease keeps its id, kernel, owner and request"
SAME_ANSWER = "`claim` may be repeated: the same lease id gets the same answer"
GRANTS_ROOM = "a claim for which the snapshot shows room is granted"
GRANTS_ONCE = (
    "a slice is granted once; other claims on it raise `LeaseConflict` instead of waiting for the slice"
)
REFUSES_SOON = "`claim` raises `LeaseConflict` as soon as the manager refuses"
REFUSES_ALL = "a claim that is refused leaves nothing behind"
QUEUES = "with `Growth.adds_nodes`, a claim without a node waits in the manager's queue until there is room"
HAS_REASON = "a pending lease has a reason, a clause without a full stop"
BECOMES_HELD = "a pending lease becomes held, or is lost with a reason"
SHOWS_ROOM = (
    "the snapshot shows the room that the suite needs: 2 units of the scarce resource and 2 CPUs on a node"
)
COUNTS_LEASE = "the snapshot counts a lease as promised, once and with the amounts of its request"
COUNTS_OTHERS = "the snapshot counts the leases of other schedulers"
COUNTS_NO_MORE = "the snapshot shows the slice of a released lease as free again"
LISTS = "`leases` lists each lease once, whichever process claimed it, and no released lease"
RELEASES = "`release` may be repeated, also for a lease that never was"
CLAIMS_AGAIN = "a lease id may be claimed again after its release"
TRANSFERS = "`leases` has the owner that the lease's agent knows"
HAS_AGENT = "`agent` returns the address of an agent that answers and has noted the lease"
STARTS_KERNEL = "the agent of a lease starts a kernel, which listens at an address that the service can reach"
ENDS_KERNEL = "the kernel of a lease ends with the lease"
ENDS_EVENTS = "`events` goes on until `close`, and then ends"
CLOSES = "`close` may be repeated"


class BrokenPromise(AssertionError):
    """A backend has broken a promise. The text names the promise, and what the backend did."""

    def __init__(self, promise: str, found: str) -> None:
        super().__init__(f"broken promise: {promise}.\nfound: {found}")
        self.promise, self.found = promise, found


def expect(is_kept: bool, promise: str, found: str) -> None:
    """Raise `BrokenPromise` unless the promise is kept. `found` says what the backend did."""
    __tracebackhide__ = True
    if not is_kept:
        raise BrokenPromise(promise, found)


async def until_kept(
    condition: Callable[[], Awaitable[object]],
    promise: str,
    found: Callable[[], str],
    seconds: float,
    pause_s: float = 0.0,
) -> None:
    """Wait until the backend keeps its promise. `condition` may itself wait for an event before it looks.

    Raises `BrokenPromise` with the text of `found()` if the backend never keeps it, and `TooLate` if it is late.
    """
    __tracebackhide__ = True
    try:
        await until(condition, lambda: f"{promise}.\nfound: {found()}", seconds, pause_s)
    except Never:
        raise BrokenPromise(promise, found()) from None


@contextmanager
def promised(promise: str, call: str) -> Iterator[None]:
    """Raise `BrokenPromise` if the block raises an error. `call` names the method that the block calls."""
    try:
        yield
    except BrokenPromise:
        raise
    except Exception as problem:
        raise BrokenPromise(promise, f"`{call}` raised {type(problem).__name__}: {problem}") from problem


@contextmanager
def holds(promise: str) -> Iterator[None]:
    """Raise `BrokenPromise` if the block raises an error. The text of an `AssertionError` is the finding.

    `TooLate` is passed on: it tells of a slow machine, not of a broken promise.
    """
    __tracebackhide__ = True
    try:
        yield
    except TooLate:
        raise
    except Exception as problem:
        found = (
            str(problem) if isinstance(problem, AssertionError) else f"{type(problem).__name__}: {problem}"
        )
        raise BrokenPromise(promise, found) from problem
