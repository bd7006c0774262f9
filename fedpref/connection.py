"""The node of this machine and the channel to it, for the rounds of training or the one of federated evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedpref.channel.base import Channel
from fedpref.channel.local import LocalChannel
from fedpref.channel.secure import SecureChannel, ServerMemory, SimulatedChannel
from fedpref.client.members import MemberJournal, embedded_identities
from fedpref.client.node import Node
from fedpref.client.secure import Identities, SecureNode
from fedpref.cohort import invited
from fedpref.config import Recipe
from fedpref.folder import RunFolder
from fedpref.journal import SealedJournal
from privacy.distributed import DistributedMechanism
from privacy.errors import MechanismMisuseError
from privacy.ledger import Ledger
from privacy.mechanism import GaussianMechanism, Mechanism


@dataclass(frozen=True)
class Exchanges:
    """Whose node it is, and what it is there for.

    Attributes:
        recipe: of the run.
        digest: of its plan; what is kept under another one is refused.
        clients: names, in the order of the clients' numbers.
        folder: where node and server keep what must outlive a kill.
        left: rounds that are still to come.
        last: number of the last round.
    """

    recipe: Recipe
    digest: str
    clients: Sequence[str]
    folder: RunFolder
    left: int
    last: int


@dataclass(frozen=True)
class Connection:
    """The channel, and what is kept behind it."""

    channel: Channel
    answered: Callable[[int], bool]
    """True if what the node answered in this round was kept, hence perhaps sent."""
    close: Callable[[], None]
    """Once all rounds are done: forget messages and secrets."""


def connect(
    given: Exchanges, mechanism: Mechanism, common: dict[str, Any], ledger: Ledger, warn: Callable[[str], None]
) -> Connection:
    """The channel that fits the mechanism. ``common``: arguments of ``Node``; ``ledger`` is the node's.

    Raises:
        RunFolderError, LedgerError: what was kept is damaged, lost, or of another run.
    """
    if isinstance(mechanism, GaussianMechanism):
        journal = SealedJournal(given.folder.sealed, given.digest)
        node = Node(mechanism=mechanism, journal=journal, ledger=ledger, **common)
        return Connection(
            LocalChannel(node), lambda number: journal.load(number, ledger.holds) is not None, journal.clear
        )
    if isinstance(mechanism, DistributedMechanism):
        return _secure(given, mechanism, {**common, "ledger": ledger}, warn)
    raise MechanismMisuseError("No channel for this mechanism.", "It is of no known trust.", "Use a known one.")


def _secure(
    given: Exchanges, mechanism: DistributedMechanism, common: dict[str, Any], warn: Callable[[str], None]
) -> Connection:
    recipe, names = given.recipe, list(given.clients)
    simulated = recipe.privacy.secure_aggregation == "simulated"
    keys = None if simulated else embedded_identities(given.folder.node / "identities", len(names))
    node = SecureNode(
        mechanism=mechanism,
        members=MemberJournal(given.folder.members, given.digest),
        identities=None if keys is None else Identities(keys[1], keys[2]),
        max_participations=recipe.privacy.max_participations,
        **common,
    )
    memory = ServerMemory(given.folder.aggregation)

    def asked(round_number: int) -> tuple[int, ...]:
        return invited(recipe, names, round_number)

    def close() -> None:
        node.finish(given.last)

    if keys is None:
        channel: Channel = SimulatedChannel(plan=mechanism.secagg, invited=asked, node=node, memory=memory, warn=warn)
    else:
        channel = SecureChannel(
            plan=mechanism.secagg,
            identity=keys[0],
            clients=keys[2].clients,
            invited=asked,
            rounds=given.left,
            transport=node,
            memory=memory,
            warn=warn,
        )
    return Connection(channel, node.answered, close)
