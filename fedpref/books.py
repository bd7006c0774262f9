"""Everything that a run books in: its two ledgers, the project's books, the clients' own; keys, locks, and closing.

Order of booking in a round: the project's books, the federation's ledger, the clients' own books, the node's ledger (under
trust `local`, where the nodes' books are the claim, the project's come after the clients' own and before the node's);
each line is on disk before the next is written, and all of them before any data are touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from fedpref.client.guard import Guard, client_configs, read_client_config
from fedpref.client.remembered import RememberedBook
from fedpref.folder import RunFolder
from fedpref.journal import write_durably
from fedpref.plan import Plan
from privacy.accounting import Composition
from privacy.entries import Events
from privacy.events import RandomizedResponseEvent
from privacy.ledger import Ledger, LedgerHeader
from privacy.project import ProjectRun, label_cost, new_cap, over_cap, over_label_cap, read_project
from privacy.project_book import Account, ProjectBook
from privacy.signing import SigningKey, head_path, key_path
from privacy.terms import EMBEDDED, Offer
from privacy.units import Adversary, Trust


@dataclass
class Books:
    """The open books of one run; ``close`` signs their heads and lets others in."""

    federation: Ledger
    node: Ledger
    offer: Offer
    guards: Mapping[int, Guard]
    project: ProjectBook | None = None
    account: Account | None = None
    _copy: Path | None = None
    _node_run: ProjectRun | None = field(default=None, repr=False)

    def agree(self, planned: Mapping[Adversary, Composition], *, private_rng: bool) -> frozenset[int]:
        """Ask every client's terms about the rest of the run, before any data are touched; who refused."""
        for guard in {id(guard): guard for guard in self.guards.values()}.values():
            if self._node_run is not None:
                guard.begin(self.offer, self._node_run, planned, private_rng)
        refused = self._refused()
        while True:  # a refusal makes the cohort smaller, which others' least cohort may not allow
            willing = replace(self.offer, num_clients=self.offer.num_clients - len(refused))
            for guard in self.guards.values():
                guard.ask_again(willing)
            if self._refused() == refused:
                return refused
            refused = self._refused()

    def book_labels(self, event: RandomizedResponseEvent) -> None:
        """Book the draw of this run's labels, before one is drawn: in the project's books, and in the willing clients' own.

        Raises:
            BudgetError: the project's label cap is missing or would be passed.
        """
        if self.account is not None:
            self.account.book_labels(event)
        for guard in {id(guard): guard for guard in self.guards.values()}.values():
            guard.book_labels(event)

    def _refused(self) -> frozenset[int]:
        return frozenset(i for i, guard in self.guards.items() if guard.refused is not None)

    def close(self) -> None:
        """Close all of them, newest first; a copy of the project's books as they are now stays in the run folder."""
        with ExitStack() as stack:  # one that fails does not keep the others open; the last callback runs first
            if self.project is not None:
                stack.callback(self._keep_copy, self.project.path)
                stack.callback(self.project.close)
            stack.callback(self.federation.close)
            stack.callback(self.node.close)
            for guard in self.guards.values():
                stack.callback(guard.close)

    def _keep_copy(self, book: Path) -> None:
        if self._copy is not None:
            for source, target in ((book, self._copy), (head_path(book), head_path(self._copy))):
                write_durably(target, source.read_bytes())


def open_books(
    plan: Plan, folder: RunFolder, headers: Mapping[str, LedgerHeader], events: Events, clients: list[str]
) -> Books:
    """Open, or continue, all books of a run.

    Args:
        plan: of the run.
        folder: the run's.
        headers: ``federation`` and ``node``.
        events: one round's, as the federation books it; chooses the filter's order if the project's books are new.
        clients: names, in the order of the clients' numbers.

    Raises:
        LedgerError: broken, rolled back, of another run, or written by another process.
        BudgetError: the project has no cap yet and the recipe gives none, or gives another.
    """
    recipe, opened = plan.recipe, list[Ledger | ProjectBook]()
    keys = {name: SigningKey.at(key_path(path)) for name, path in _paths(folder).items()}
    sources = tuple(recipe.datasets)
    try:
        runs = {
            name: ProjectRun(
                0, key.public, headers[name].scope, plan.digest, recipe.privacy.unit, recipe.privacy.trust, sources
            )
            for name, key in keys.items()
        }
        project, accounts = None, dict[str, Account]()
        if recipe.privacy.ledger is not None:
            project = _open_project(Path(recipe.privacy.ledger))
            opened.append(project)
            # The book that is the claim joins: under `local` a node's, which alone has a round that the node repeats.
            claim = "node" if recipe.privacy.trust is Trust.LOCAL else "federation"
            accounts[claim] = _join(project, plan, runs[claim], events)
        books = {}
        for name, path in _paths(folder).items():
            books[name] = Ledger(path, headers[name], signer=keys[name], project=accounts.get(name))
            opened.append(books[name])
        return Books(
            books["federation"],
            books["node"],
            _offer(plan, len(clients)),
            _guards(recipe.federation.terms, clients, folder.node / "books"),
            project,
            next(iter(accounts.values()), None),
            folder.project if project else None,
            runs["node"],
        )
    except BaseException:
        for book in reversed(opened):
            book.close()
        raise


def refuse_early(plan: Plan, events: Events, planned: Mapping[Adversary, Composition]) -> None:
    """What can be refused before a folder is made and a data file is opened: the project's cap, and the clients' terms.

    Everything is checked again when the books are open, for resumed runs too.

    Raises:
        BudgetError: the run does not fit what is left of the project's cap; says which rounds or noise would.
        TermsRefusal: the terms of all clients of this machine refuse the run.
    """
    recipe, p = plan.recipe, plan.recipe.privacy
    if p.ledger is not None:
        path = Path(p.ledger)
        view = read_project(path) if path.exists() else None
        cap = view.caps.get(p.unit) if view else None
        if cap is None and p.project_cap is not None:
            cap = new_cap(path.name, p.unit, dict.fromkeys(Adversary, p.project_cap), p.target_delta, events)
        for adversary, composition in planned.items() if cap else ():
            spent = view.spent(p.unit, adversary) if view else {}
            refusal = over_cap(path.name, cap, adversary, spent, composition) if cap else None
            if refusal is not None:
                raise refusal
        label_cap = p.project_label_cap if view is None else view.label_caps.get(p.unit, p.project_label_cap)
        if plan.labels is not None and label_cap is not None:
            spent_on_labels = view.label_total(p.unit) if view else 0.0
            refusal = over_label_cap(path.name, p.unit, label_cap, spent_on_labels, label_cost(plan.labels.event))
            if refusal is not None:
                raise refusal
    if recipe.federation.terms is not None and not Path(recipe.federation.terms).is_dir():
        terms = read_client_config(Path(recipe.federation.terms)).terms
        simulated = recipe.federation.partition
        known = simulated.num_clients if simulated.by == "hash" else None
        no = terms.check(_offer(plan, known or terms.min_clients), date.today())
        if no is not None:
            raise no


def _paths(folder: RunFolder) -> dict[str, Path]:
    return {"federation": folder.ledger, "node": folder.node_ledger}


def _open_project(path: Path) -> ProjectBook:
    path.parent.mkdir(parents=True, exist_ok=True)
    return ProjectBook(path, SigningKey.at(key_path(path)))


def _join(project: ProjectBook, plan: Plan, run: ProjectRun, events: Events) -> Account:
    p = plan.recipe.privacy
    cap = None if p.project_cap is None else dict.fromkeys(Adversary, p.project_cap)
    project.fix_cap(p.unit, cap, p.target_delta, events)
    if plan.labels is not None:
        project.fix_label_cap(p.unit, p.project_label_cap)
    return project.join(run, private_rng=p.rng == "os")


def _guards(terms: str | None, clients: list[str], memory: Path) -> dict[int, Guard]:
    """Clients that share a file share a guard; a run's memory of its books is named by the first of them."""
    if terms is None:
        return {}
    configs = client_configs(Path(terms), clients)
    first = {id(config): number for number, config in sorted(configs.items(), reverse=True)}
    shared = {
        id(config): Guard(config, remembered=RememberedBook(memory / f"{first[id(config)]}.json"))
        for config in configs.values()
    }
    return {number: shared[id(config)] for number, config in configs.items()}


def _offer(plan: Plan, num_clients: int) -> Offer:
    p = plan.recipe.privacy
    return Offer(
        unit=p.unit,
        trust=p.trust,
        delta=p.target_delta,
        epsilon=dict.fromkeys(Adversary, 0.0),
        num_clients=num_clients,
        recipe=plan.digest,
        server=EMBEDDED,
        label_epsilon=math.inf if plan.labels is None else label_cost(plan.labels.event),
    )
