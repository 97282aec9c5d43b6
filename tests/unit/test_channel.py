"""The socket between the root and its processes loses no last word."""

from __future__ import annotations

import os

import pytest

from shmrt import _native
from shmrt.supervise.protocol import Channel


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
