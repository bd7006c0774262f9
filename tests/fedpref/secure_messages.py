"""Takes apart what clients send in the trips of secure aggregation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedpref.channel.base import Failure, RoundRequest
from fedpref.client.secure import SecureNode
from privacy.secagg.wire import MAGIC, divide


@dataclass(frozen=True)
class Sent:
    """One signed message of a client: its head, and its size as a whole."""

    head: dict[str, Any]
    data: bytes

    @property
    def kind(self) -> str:
        """What it is."""
        return str(self.head["kind"])


def messages(reply: bytes) -> Iterator[Sent]:
    """The signed messages of a bundle, in order; empty places are refusals."""
    for part in divide(reply, at_most=2):
        inner = [part] if not part or part[:4] == MAGIC else divide(part, at_most=2)
        for data in inner:
            if data:
                size = int.from_bytes(data[5:9], "little")
                yield Sent(json.loads(data[9 : 9 + size]), data)


@dataclass
class Watch:
    """Every message that a node let go, by client; and with which round of training its vectors were asked for."""

    sent: dict[int, list[Sent]] = field(default_factory=dict)
    vectors: dict[tuple[int, int], set[bytes]] = field(default_factory=dict)
    trips: int = 0

    def look(self, replies: Mapping[int, bytes | Failure], request: RoundRequest | None) -> None:
        """Take down one trip."""
        self.trips += 1
        for client, reply in replies.items():
            for one in messages(reply) if isinstance(reply, bytes) else ():
                self.sent.setdefault(client, []).append(one)
                if one.kind == "masked" and request is not None:
                    self.vectors.setdefault((request.round, client), set()).add(one.data)


def watch(patch: pytest.MonkeyPatch) -> Watch:
    """Watch all nodes from now on."""
    seen, trip = Watch(), SecureNode.trip

    def spy(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
        replies = trip(self, bundles, request)
        seen.look(replies, request)
        return replies

    patch.setattr(SecureNode, "trip", spy)
    return seen
