"""What a director says in a secure sum reaches the thread that works, each item once."""

import threading

import pytest
from fedveil.envoy.mailbox import Mailbox
from fedveil.utils.errors import SumAbortedError


def test_items_come_in_their_order():
    mailbox = Mailbox()
    mailbox.put(b"cohort")
    mailbox.put(b"delivery")
    assert [mailbox.take("the cohort", 5.0), mailbox.take("the shares", 5.0)] == [b"cohort", b"delivery"]


def test_an_item_that_is_said_again_counts_once_also_when_it_was_taken():
    mailbox = Mailbox()
    mailbox.put(b"cohort")
    mailbox.take("the cohort", 5.0)
    assert not mailbox.is_news(b"cohort")
    mailbox.put(b"cohort")
    assert mailbox.is_news(b"delivery")
    mailbox.put(b"delivery")
    assert mailbox.take("the shares", 5.0) == b"delivery"


def test_whoever_waits_is_told_of_an_item_and_of_a_withdrawal():
    mailbox, came = Mailbox(), []

    def wait():
        came.append(mailbox.take("the cohort", 5.0))
        try:
            mailbox.take("the shares", 5.0)
        except SumAbortedError as error:
            came.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    mailbox.put(b"cohort")
    while not came:
        waiting.join(0.01)
    mailbox.close()
    waiting.join(60.0)
    assert came == [b"cohort", "withdrawn while this site waited for the shares"]


def test_what_was_said_before_a_withdrawal_is_not_worked_on_after_it():
    mailbox = Mailbox()
    mailbox.put(b"consents")
    mailbox.close()
    with pytest.raises(SumAbortedError, match="withdrawn"):
        mailbox.take("the consents", 5.0)


def test_what_does_not_come_in_time_is_named():
    with pytest.raises(SumAbortedError, match="the consents did not come within 0 s"):
        Mailbox().take("the consents", 0.001)


def test_a_director_that_says_too_much_is_no_longer_listened_to():
    mailbox, heard = Mailbox(), 0
    for number in range(100):
        mailbox.put(f"item {number}".encode())
        if heard < 16:
            heard += mailbox.take("an item", 5.0) == f"item {number}".encode()
    assert heard == 16
    with pytest.raises(SumAbortedError):
        mailbox.take("an item", 0.001)


def test_of_what_is_said_at_once_only_a_little_is_held_in_memory():
    mailbox = Mailbox()
    for number in range(100):
        mailbox.put(f"item {number}".encode())
    assert not mailbox.is_news(b"more")
    assert [mailbox.take("an item", 5.0) for _ in range(4)] == [f"item {n}".encode() for n in range(4)]
    assert mailbox.is_news(b"item 4")  # it comes again when the line is opened again
    with pytest.raises(SumAbortedError):
        mailbox.take("an item", 0.001)
