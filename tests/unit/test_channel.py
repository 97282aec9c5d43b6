"""The socket between the root and its processes loses no last word."""

from __future__ import annotations

import os

import pytest

from shmrt import _native
from shmrt.supervise.protocol import TELL_MAX, Channel


@pytest.mark.parametrize("unread", [False, True])
def test_the_last_word_of_a_peer_outlives_what_is_sent_to_it(unread: bool) -> None:
    """A child says why it exits and is gone before the root, which has not read it, says something else."""
    ours, theirs = _native.socketpair(False)
    channel, peer = Channel(ours), Channel(theirs)
    if unread:
        channel.send(("never read",))
    peer.send(("exit", "shutdown"))
    os.close(theirs)
    channel.send(("shutdown",))
    channel.send(("again",))
    assert not channel.pending
    assert channel.receive() == [(("exit", "shutdown"), [])]
    while not channel.closed:
        assert channel.receive() == []
    os.close(ours)


def test_news_for_a_peer_that_does_not_read_is_left_out_from_a_bound_on() -> None:
    """What is owed still queues behind it, and whatever was taken arrives once, in order, when the peer reads again."""
    ours, theirs = _native.socketpair(False)
    channel, peer = Channel(ours), Channel(theirs)
    told = 0
    while channel.tell(("event", told)):
        told += 1
        assert told < 1_000_000, "nothing bounds what waits for a peer that does not read"
    assert told >= TELL_MAX
    assert not channel.tell(("event", "left out"))
    channel.send(("stopped",))
    got = []
    while channel.pending:
        got += peer.receive()
        channel.flush()
    got += peer.receive()
    assert [message for message, _ in got] == [*(("event", number) for number in range(told)), ("stopped",)]
    assert channel.tell(("event", "again"))
    assert peer.receive() == [(("event", "again"), [])]
    os.close(ours)
    os.close(theirs)
