"""The embedded channel: one node with all simulated clients, in this process."""

from __future__ import annotations

from fedpref.channel.base import Answering, Failure, RoundRequest


class LocalChannel:
    """Hands requests to a node in the same process. Whatever stops the node stops the run, resumably."""

    def __init__(self, node: Answering) -> None:
        self._node = node

    def exchange(self, request: RoundRequest) -> list[bytes | Failure]:
        """The node's sealed bytes."""
        return list(self._node.contribute(request))
