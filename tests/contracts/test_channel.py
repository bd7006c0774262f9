"""Every channel: one reply per client, in order, as bytes; a request arrives as it was sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import pytest

from fedpref.channel.base import Answering, Channel, Failure, RoundRequest
from fedpref.channel.local import LocalChannel
from privacy.errors import CodedError, LedgerWriteError

REQUEST = RoundRequest(3, "digest", np.linspace(0, 1, 4))


class Node:
    """Answers with what it was asked, once per client."""

    def __init__(self, num_clients: int, fail: Callable[[], None] = lambda: None) -> None:
        self.asked: list[RoundRequest] = []
        self._num_clients, self._fail = num_clients, fail

    def contribute(self, request: RoundRequest) -> list[bytes]:
        self.asked.append(request)
        self._fail()
        return [f"{i}:{request.round}".encode() + request.parameters.tobytes() for i in range(self._num_clients)]


class ChannelContract(ABC):
    """What holds for every way to reach the nodes."""

    @abstractmethod
    def connect(self, node: Answering) -> Channel:
        """A channel to this node."""

    @pytest.mark.parametrize("num_clients", [1, 3, 50])
    def test_one_reply_per_client_in_order(self, num_clients: int) -> None:
        replies = self.connect(Node(num_clients)).exchange(REQUEST)
        body = REQUEST.parameters.tobytes()
        assert replies == [f"{i}:3".encode() + body for i in range(num_clients)]

    def test_the_request_arrives_as_it_was_sent(self) -> None:
        node = Node(2)
        self.connect(node).exchange(REQUEST)
        (asked,) = node.asked
        assert (asked.round, asked.manifest_digest) == (3, "digest")
        assert asked.parameters.dtype == np.float64
        assert np.array_equal(asked.parameters, REQUEST.parameters)

    def test_rounds_are_independent_exchanges(self) -> None:
        channel = self.connect(Node(2))
        first = channel.exchange(REQUEST)
        second = channel.exchange(RoundRequest(4, "digest", REQUEST.parameters))
        assert first != second
        assert channel.exchange(REQUEST) == first

    def test_a_node_that_cannot_answer_is_no_silence(self) -> None:
        """It stops the run coded, or its clients are failures; it is never a shorter list."""

        def disk() -> None:
            raise LedgerWriteError("what", "why", "fix")

        channel, stopped = self.connect(Node(3, disk)), False
        try:
            replies = channel.exchange(REQUEST)
        except CodedError:
            stopped = True
        assert stopped or [type(reply) for reply in replies] == [Failure] * 3


class TestLocalChannel(ChannelContract):
    def connect(self, node: Answering) -> Channel:
        return LocalChannel(node)
