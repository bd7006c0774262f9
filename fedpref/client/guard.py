"""A client's own defence: its terms, read from ``client.yaml``, and its own books over all runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from fedpref.channel.base import Failure
from fedpref.client.remembered import RememberedBook
from privacy.accounting import Composition
from privacy.entries import Events
from privacy.errors import CodedError, ParameterError, TermsRefusal
from privacy.events import RandomizedResponseEvent
from privacy.project import ProjectRun
from privacy.project_book import Account, ProjectBook
from privacy.signing import SigningKey, key_path
from privacy.terms import Offer, Terms
from privacy.units import Adversary


@dataclass(frozen=True)
class ClientConfig:
    """``client.yaml``: terms, and where the client's own books over all runs lie (beside the file unless said)."""

    terms: Terms
    ledger: Path


def read_client_config(path: Path) -> ClientConfig:
    """Read a client's file; closed, like a recipe.

    Raises:
        ParameterError: unreadable, an unknown key, or terms that are none.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}"[:200]) from None
    if not isinstance(tree, dict) or not {"terms"} <= set(tree) <= {"terms", "ledger"}:
        raise _unreadable(path, "It has the keys `terms` and, if wanted, `ledger`, and no others.")
    ledger = tree.get("ledger", f"{path.stem}.books.jsonl")
    if not isinstance(ledger, str):
        raise _unreadable(path, "`ledger` is a path.")
    return ClientConfig(Terms.from_json(tree["terms"]), path.parent / ledger)


def client_configs(path: Path, clients: list[str]) -> dict[int, ClientConfig]:
    """Client number -> its file. ``path`` is one file for all clients of the node, or a folder with CLIENT.yaml each.

    In a folder, a client without a file has no terms: it takes part in everything that the recipe says.

    Raises:
        ParameterError: nothing there, or a file that names no client.
    """
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.yaml"))}
        strangers = sorted(files.keys() - set(clients))
        if strangers or not files:
            raise _unreadable(
                path, f"No client is named {strangers[0]!r}." if strangers else "No CLIENT.yaml is in it."
            )
        return {i: read_client_config(files[name]) for i, name in enumerate(clients) if name in files}
    one = read_client_config(path)
    return dict.fromkeys(range(len(clients)), one)


def _unreadable(path: Path, why: str) -> ParameterError:
    return ParameterError(f"{path.name}: is no client's file.", why, "See docs/terms.md for the form.")


class Guard:
    """Terms and books of one client (or of several that share both) in one run."""

    def __init__(
        self, config: ClientConfig, today: Callable[[], date] = date.today, remembered: RememberedBook | None = None
    ) -> None:
        self._terms, self._path, self._today = config.terms, config.ledger, today
        self._remembered = remembered
        self._book: ProjectBook | None = None
        self._account: Account | None = None
        self._refused: CodedError | None = None

    def begin(self, offer: Offer, run: ProjectRun, planned: Mapping[Adversary, Composition], booked: bool) -> None:
        """Check the whole run before it starts. A refusal is kept and answers every round of it.

        Args:
            offer: what is asked; its ``epsilon`` is filled in here.
            run: how the run is named in the client's own books.
            planned: what is left of the run, per adversary.
            booked: False if the random numbers can be replayed: nothing is promised then, and nothing booked.
        """
        self._refused = self._terms.check(replace(offer, epsilon=dict.fromkeys(Adversary, 0.0)), self._today())
        if self._refused is not None:
            return
        if not booked:
            self._refused = TermsRefusal(
                "The client's terms refuse: `budgets`.",
                "The random numbers of this run can be replayed (`privacy.rng: seeded`), so its epsilon is infinite.",
                "Ask with `privacy.rng: os`.",
                term="budgets",
            )
            return
        try:
            self._join(offer, run, planned)
        except CodedError as error:
            self._refused = error
            self.close()

    def _open(self) -> ProjectBook:
        """The client's own books, if they are as this run left them."""
        if self._remembered is not None:
            self._remembered.check_present(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        book = ProjectBook(self._path, SigningKey.at(key_path(self._path)))
        try:
            if self._remembered is not None:
                self._remembered.check(self._path.name, book)
        except CodedError:
            book.close()
            raise
        return book

    def _remember(self) -> None:
        if self._remembered is not None and self._book is not None:
            self._remembered.remember(self._book)

    def _join(self, offer: Offer, run: ProjectRun, planned: Mapping[Adversary, Composition]) -> None:
        budget = self._terms.budgets[offer.unit]
        self._book = book = self._open()
        known = book.cap_of(offer.unit)
        stricter = known is not None and known.delta <= budget.delta and _at_most(budget.epsilon, known.epsilon)
        events = {adversary: next(iter(composition)) for adversary, composition in planned.items() if composition}
        if events and not stricter:  # terms may be tightened along the way, never loosened: see ``fix_cap``
            book.fix_cap(offer.unit, budget.epsilon, budget.delta, events)
        self._account = book.join(run, private_rng=True)
        self._remember()
        for adversary, composition in planned.items():
            self._account.expect(adversary, composition)
        bounds = {adversary: self._account.bound(adversary, composition) for adversary, composition in planned.items()}
        labels = self._label_total(offer, book, self._account)
        refusal = self._terms.check(replace(offer, epsilon=bounds, label_epsilon=labels), self._today())
        if refusal is not None:
            raise refusal

    def _label_total(self, offer: Offer, book: ProjectBook, account: Account) -> float:
        """What randomised labels would have spent over all runs; their cap is the terms', fixed like a budget."""
        most = self._terms.max_label_epsilon
        if most is None or offer.label_epsilon == math.inf:
            return offer.label_epsilon
        known = book.label_cap_of(offer.unit)
        if known is None or most > known:
            book.fix_label_cap(offer.unit, most)
        return account.label_total(offer.label_epsilon)

    def book_labels(self, event: RandomizedResponseEvent) -> None:
        """Book the draw of this run's labels in the client's own books, if its terms cap them; before one is drawn."""
        if self._account is not None and self._refused is None and self._terms.max_label_epsilon is not None:
            self._account.book_labels(event)
            self._remember()

    def ask_again(self, offer: Offer) -> None:
        """Ask the terms about a smaller cohort: ``num_clients`` are those that are willing."""
        if self._refused is None:
            self._refused = self._terms.check(replace(offer, epsilon=dict.fromkeys(Adversary, 0.0)), self._today())
            if self._refused is not None:
                self.close()

    @property
    def refused(self) -> CodedError | None:
        """Why this client takes no part in the run, if it refused it as a whole."""
        return self._refused

    def check(self, offer: Offer, events: Events, goes_on: int | None = None) -> CodedError | None:
        """Check one round's request: the terms as they are today, and the books with ``events`` on top.

        ``events`` is empty for the round ``goes_on``, which was booked before and goes on: if this client's own books do
        not have it, the client refused it then, and takes no part now.
        """
        if self._refused is not None:
            return self._refused
        if self._account is None:
            return TermsRefusal(
                "The client was not asked before the run.", "No run began.", "Start with `begin`.", term="budgets"
            )
        if goes_on is not None and not self._account.has_booked(goes_on):
            return TermsRefusal(
                "The client did not agree to this round.",
                "It goes on under an earlier booking, which the client's own books do not have.",
                "The client takes part again from the next round that its terms allow.",
                term="budgets",
            )
        epsilon = {who: self._account.bound(who, {e: 1} if (e := events.get(who)) else {}) for who in Adversary}
        return self._terms.check(replace(offer, epsilon=epsilon), self._today())

    def reserve(self, round_number: int, events: Events) -> None:
        """Book the round in the client's own books, before its data are touched."""
        if self._account is not None:
            self._account.reserve(round_number, events)
            self._remember()

    def close(self) -> None:
        """Close the client's own books."""
        if self._book is not None:
            self._book.close()


def _at_most(asked: Mapping[Adversary, float], fixed: Mapping[Adversary, float]) -> bool:
    return all(asked[adversary] <= fixed[adversary] for adversary in Adversary)


def failure(refusal: CodedError) -> Failure:
    """A coded refusal as the channel carries it: code and term alone; what was spent elsewhere is the client's own."""
    term = getattr(refusal, "term", "")
    return Failure(f"[{refusal.code}] refused by the client's terms{f': {term}' if term else ''}", refusal.code)
