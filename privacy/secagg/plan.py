"""Everything about secure aggregation that server and clients must agree on, and its digest.

Both sides build the plan from the recipe; the server's messages name its digest, and a client answers no other one. So
a server cannot change codec, clipping, noise, threshold or cohort bounds of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from privacy.errors import ParameterError
from privacy.events import GaussianEvent, canonical
from privacy.secagg.bounds import honest_shares
from privacy.secagg.buckets import Buckets
from privacy.secagg.codec import Codec
from privacy.secagg.keys import digest
from privacy.secagg.sizing import ShareNoise


class Consistency(StrEnum):
    """``folded``: unmask at once, noise sized for split views. ``strict``: first agree on the survivors (one more trip)."""

    FOLDED = "folded"
    STRICT = "strict"


@dataclass(frozen=True)
class Cohort:
    """Bounds of one sum's cohort: of everybody who is asked, or of each bucket.

    Attributes:
        largest: n_inv, most members.
        least: n_min, fewest members that share keys, and fewest survivors that are unmasked.
        threshold: t, shares that rebuild a secret.
        colluders: c, members that may work with the server or leave out their noise.
        consistency: see ``Consistency``.
        unclosed: how many rounds of a run may lack a closure (t signatures on the survivors) before a client stops.
    """

    largest: int
    least: int
    threshold: int
    colluders: int = 0
    consistency: Consistency = Consistency.FOLDED
    unclosed: int = 2

    def __post_init__(self) -> None:
        sound = (
            2 <= self.threshold <= self.least <= self.largest
            and 0 <= self.colluders < self.least
            and 3 * self.threshold > 2 * self.largest
            and 2 * self.threshold > self.largest + self.colluders
            and self.unclosed >= 0
        )
        if not sound:
            raise ParameterError(
                f"No safe cohort: largest {self.largest}, least {self.least}, threshold {self.threshold}, "
                f"colluders {self.colluders}.",
                "It takes 2 <= threshold <= least <= largest, 3 threshold > 2 largest and 2 threshold > largest + "
                "colluders; otherwise a lying server could learn both secrets of one client.",
                "Set threshold = least, and least above two thirds of largest; with buckets, in each of them.",
            )

    @property
    def honest_shares(self) -> int:
        """a: fewest honest vectors, and noise shares, in any sum that can be unmasked."""
        strict = self.consistency is Consistency.STRICT
        return honest_shares(self.largest, self.least, self.threshold, self.colluders, strict=strict)


@dataclass(frozen=True)
class SecAggPlan:
    """One run's plan. Its ``digest`` is in every message and in every key derivation."""

    run: str
    codec: Codec
    noise: ShareNoise
    cohort: Cohort
    buckets: Buckets = field(default_factory=Buckets)

    def __post_init__(self) -> None:
        codec, noise = self.codec, self.noise
        if noise.sensitivity2 != codec.sensitivity2 or noise.coordinates != codec.coordinates:
            raise ParameterError(
                "The noise is sized for another codec.",
                f"Squared sensitivity {noise.sensitivity2} against {codec.sensitivity2}.",
                "Take both from choose_codec.",
            )
        if noise.honest_shares > self.cohort.honest_shares:
            raise ParameterError(
                f"The noise counts on {noise.honest_shares} honest shares, but a sum may hold {self.cohort.honest_shares}.",
                "The server may split its clients' views, and colluders may leave out their noise.",
                "Size the noise with Cohort.honest_shares.",
            )

    def split(self, round_number: int, clients: Iterable[int]) -> tuple[tuple[int, ...], ...]:
        """Who is in which bucket of a round, if these are invited; see ``Buckets.split``."""
        return self.buckets.split(self.context(round_number), clients)

    @property
    def trimmed(self) -> int:
        """Lying clients that the buckets outvote: of the c that the noise counts on."""
        return self.buckets.outvoted(self.cohort.colluders)

    @property
    def least_buckets(self) -> int:
        """Fewest bucket sums that make a round."""
        return self.buckets.least(self.cohort.colluders)

    @property
    def event(self) -> GaussianEvent | None:
        """What one round books against everybody: the un-amplified worst sum with its slack. None without noise.

        With buckets it is one bucket's: the others' sums do not depend on the unit.
        """
        if not self.noise.sigma:
            return None
        return self.noise.event(1.0, clients=self.cohort.largest, rounding_failure=self.codec.rounding_failure)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form."""
        return digest(b"plan", canonical(self.to_json()).encode())

    def context(self, round_number: int) -> bytes:
        """What separates one round's keys and signatures from every other one's."""
        return digest(b"round", self.run.encode(), str(round_number).encode(), self.digest)

    def rotation_key(self, round_number: int) -> bytes:
        """The public key of a round's signs."""
        return digest(b"rotation", self.context(round_number))

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        c = self.cohort
        cohort = [c.largest, c.least, c.threshold, c.colluders, c.consistency.value, c.unclosed]
        fields: dict[str, Any] = {
            "run": self.run,
            "codec": self.codec.to_json(),
            "noise": self.noise.to_json(),
            "cohort": cohort,
        }
        if self.buckets.count > 1:
            fields["buckets"] = [self.buckets.count, self.buckets.largest_norm]
        return fields


def roster_digest(adverts: Sequence[bytes]) -> bytes:
    """H(U1): the signed keys of a round, in the order of their clients."""
    return digest(b"roster", *adverts)


def view_digest(roster: bytes, members: Sequence[int], model: bytes) -> bytes:
    """H(U1, U2, theta): what pads are bound to. Clients with different views do not cancel."""
    return digest(b"view", roster, canonical(list(members)).encode(), model)


def survivors_digest(survivors: Sequence[int]) -> bytes:
    """H(U3)."""
    return digest(b"survivors", canonical(list(survivors)).encode())
