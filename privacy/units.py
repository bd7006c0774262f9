"""Who is protected (unit), what neighbours differ in (relation), and against whom (adversary)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PrivacyUnit(StrEnum):
    """What one neighbouring data set lacks: one preference record, one person, or one client."""

    EXAMPLE = "example"
    USER = "user"
    CLIENT = "client"


class Trust(StrEnum):
    """Where the noise is added: by the server, inside secure aggregation, or by each client alone."""

    CENTRAL = "central"
    DISTRIBUTED = "distributed"
    LOCAL = "local"


@dataclass(frozen=True)
class FurtherAdversary:
    """An adversary of guarantees.md that has no epsilon of its own under a trust: what holds against it, in words."""

    name: str
    described: str
    statement: str


def further_adversaries(trust: Trust, colluders: int | None = None, outvoted: int = 0) -> tuple[FurtherAdversary, ...]:
    """The rows of guarantees.md's table beside those of ``Adversary``.

    ``colluders``: how many clients the noise of trust ``distributed`` is planned for to work with the server; ``outvoted``:
    how many lying ones the sums over buckets bear.
    """
    together, active, malicious = _STATEMENTS[trust]
    if outvoted:
        malicious = _OUTVOTED.format(o=outvoted, c="{c}")
    c = "c" if colluders is None else str(colluders)
    return (
        FurtherAdversary(
            "server_and_colluding_clients",
            f"server with {c} colluding client{'' if c == '1' else 's'}",
            together.format(c=c),
        ),
        FurtherAdversary("active_server", "active server (lies, replays, asks twice)", active.format(c=c)),
        FurtherAdversary("malicious_clients", "malicious clients (wrong or hostile sums)", malicious.format(c=c)),
    )


_STATEMENTS = {
    Trust.CENTRAL: (
        "none: the server is trusted",
        "none: the server is trusted; clients refuse what their terms do not allow",
        "others' privacy is unchanged; the server leaves out malformed messages and bounds each client's sum",
    ),
    Trust.LOCAL: (
        "as against the server: each client's own noise is all it needs",
        "as against the server: clients noise by themselves, and refuse what their terms do not allow",
        "others' privacy is unchanged; a false sum is not told from a noisy one",
    ),
    Trust.DISTRIBUTED: (
        "as against the server: the booked noise is that of the other clients alone ({c} may collude)",
        "as against the server: clients refuse other keys, lists, plans and second answers; it can only stop rounds",
        "others' privacy is unchanged for up to {c} of them; a well-formed lie inside the mask is not bounded",
    ),
}


_OUTVOTED = (
    "others' privacy is unchanged for up to {c} of them; a lie inside the mask moves nothing beyond what honest buckets "
    "say, for up to {o} of them"
)


class Relation(StrEnum):
    """Neighbouring relations of the ledger.

    ``ZERO_OUT``: one unit's contribution is replaced by the empty one; membership, the declared number of units and
    every divisor stay. It is dp_accounting's ``REPLACE_SPECIAL`` and equals add/remove for the Poisson-sampled
    Gaussian, because no divisor depends on data (guarantees.md rule 10).
    """

    ZERO_OUT = "zero_out"


class Adversary(StrEnum):
    """Who might try to learn about one unit; no epsilon is printed without one of these."""

    READER = "reader"
    OTHER_CLIENTS = "other_clients"
    SERVER = "server"

    @property
    def described(self) -> str:
        """One phrase for reports."""
        return {
            Adversary.READER: "reader of the release",
            Adversary.OTHER_CLIENTS: "other clients (see every round's parameters)",
            Adversary.SERVER: "honest-but-curious server (sees all messages and who takes part)",
        }[self]
