"""The book of leases: what the scheduler wants of each, what the cluster shows of it, and the changes of both."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.lease_book import _REMEMBERED, LeaseBook

HELD = Lease(id="l", kernel_id="k", node_id="n", request=Request(cpus=1), owner=Owner(user="ada"))
PENDING = replace(HELD, state="pending", reason="its image is being pulled")
LOST = replace(HELD, state="lost", reason="it was evicted")


def open_book() -> tuple[LeaseBook, list[Lease]]:
    """Return an empty book, and the list of what it reports."""
    book, reported = LeaseBook(), list[Lease]()
    book.listen(reported.append)
    return book, reported


def test_a_claim_takes_no_room_until_the_cluster_shows_it() -> None:
    book, reported = open_book()
    book.want(HELD)
    assert (book.get("l"), list(book), book.on("n")) == (replace(HELD, state="pending"), [], [])
    book.show(PENDING)
    book.show(HELD)
    assert (book.get("l"), list(book), book.on("n")) == (HELD, [HELD], [HELD])
    assert reported == [PENDING, HELD]


def test_the_same_news_is_reported_once() -> None:
    book, reported = open_book()
    for _ in range(3):
        book.show(HELD)
    assert reported == [HELD]


def test_a_claim_that_is_repeated_changes_nothing() -> None:
    book, _ = open_book()
    book.show(HELD)
    book.want(PENDING)
    assert (book.get("l"), book.is_shown("l")) == (HELD, True)


@pytest.mark.parametrize("late", [PENDING, HELD, LOST])
def test_late_news_about_a_released_lease_is_ignored(late: Lease) -> None:
    book, reported = open_book()
    book.want(HELD)
    book.release("l")
    assert not book.show(late)
    assert (list(book), reported, book.is_released("l")) == ([], [], True)
    book.miss("l")
    assert reported == []


def test_a_lease_takes_room_until_the_cluster_shows_it_no_more() -> None:
    book, reported = open_book()
    book.show(HELD)
    book.release("l")
    assert (book.on("n"), list(book), book.nodes()) == ([HELD], [HELD], ["n"])
    book.miss("l")
    assert (book.on("n"), list(book), book.nodes(), reported) == ([], [], [], [HELD])
    assert (book.get("l"), "l" in book) == (HELD, False), "its last state is remembered"


def test_a_released_lease_can_be_claimed_again() -> None:
    book, _ = open_book()
    book.show(HELD)
    book.release("l")
    book.miss("l")
    book.want(HELD)
    assert not book.is_released("l")
    assert book.show(HELD)
    assert list(book) == [HELD]


def test_a_release_before_any_claim_is_remembered() -> None:
    book, _ = open_book()
    book.release("l")
    assert not book.show(HELD)


def test_a_lost_lease_takes_no_room_and_gives_its_reason_once() -> None:
    book, reported = open_book()
    book.show(HELD)
    book.lose("l", "it was evicted")
    book.lose("l", "it was evicted")
    assert (book.on("n"), book.get("l"), reported) == ([], LOST, [HELD, LOST])


def test_a_lease_that_is_missed_counts_as_lost_until_it_is_found_again() -> None:
    book, reported = open_book()
    book.show(HELD)
    book.miss("l")
    book.miss("l")
    gone = replace(HELD, state="lost", reason="its lease is gone")
    assert (reported, book.is_shown("l"), book.on("n")) == ([HELD, gone], False, [])
    book.drop("l")
    assert book.get("l") is None
    assert book.show(HELD), "nobody has released it"


def test_nothing_is_lost_that_is_not_known() -> None:
    book, reported = open_book()
    book.lose("l", "it was evicted")
    book.miss("l")
    book.want(HELD)
    book.miss("l")
    assert (reported, list(book)) == ([], [])


def test_only_the_last_releases_are_remembered() -> None:
    book, _ = open_book()
    for number in range(_REMEMBERED + 1):
        book.release(f"l{number}")
    assert not book.is_released("l0")
    assert book.is_released("l1")


def test_the_leases_of_a_node_are_always_those_that_are_shown_there() -> None:
    dice = random.Random(7)
    book, plain = LeaseBook(), dict[str, Lease]()
    for _ in range(2_000):
        state = dice.choice(["pending", "held", "lost"])
        lease = replace(HELD, id=f"l{dice.randrange(20)}", node_id=f"n{dice.randrange(4)}", state=state)
        if dice.random() < 0.4:
            book.release(lease.id)
            book.miss(lease.id)
            plain.pop(lease.id, None)
        else:
            book.want(lease)
            book.show(lease)
            plain[lease.id] = lease
        room = [each for each in plain.values() if each.state != "lost"]
        assert {each.id: each for each in book} == plain
        assert set(book.nodes()) == {each.node_id for each in room}
        for node_id in ("n0", "n1", "n2", "n3"):
            assert {each.id for each in book.on(node_id)} == {e.id for e in room if e.node_id == node_id}
