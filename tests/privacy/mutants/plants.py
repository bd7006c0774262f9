"""Known defects of well-known systems (guarantees.md, last paragraph), each as a small change of this program.

A plant changes the running program through its public seams, in a process of its own, before any test is collected; the
tests named as killers, ordinary tests of the suite, must then fail. ``make mutants`` plants them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NODE = "tests/fedpref/test_node.py::"
LEDGER = "tests/privacy/test_ledger.py::"


@dataclass(frozen=True)
class Mutant:
    """A defect: who had it first is in guarantees.md; ``plant`` is None where the part does not exist yet."""

    name: str
    defect: str
    killers: tuple[str, ...]
    plant: Callable[[], None] | None
    why_not: str = ""


def weighted_mean() -> None:
    """Each client's sum is weighted by something of its own; the noise stays sized for a plain sum."""
    from fedpref import server

    opened = server.sealed_from_bytes

    def weighted(data: bytes, expected: Any, client: int, *rest: Any) -> Any:
        message = opened(data, expected, client, *rest)
        return type(message)(message.client, message.round, message.value * (1 + client), message.l2_bound)

    server.sealed_from_bytes = weighted  # type: ignore[assignment]


def shuffled_loader() -> None:
    """The coins are thrown away; a batch of fixed size is drawn without replacement instead."""
    from privacy.sampling import PoissonSampling

    select = PoissonSampling.select

    def fixed_size(self: Any, stream: Any, *rest: Any) -> Any:
        mask = select(self, stream, *rest)
        order = np.argsort(stream.words(len(mask)))
        return np.isin(np.arange(len(mask)), order[: round(self.rate * len(mask))])

    PoissonSampling.select = fixed_size  # type: ignore[method-assign]


def client_coins() -> None:
    """All units of a client share one coin, booked as if each had its own."""
    from privacy.sampling import PoissonSampling

    select = PoissonSampling.select

    def one_coin(self: Any, stream: Any, *rest: Any) -> Any:
        mask = select(self, stream, *rest)
        return np.repeat(mask[::10], 10)[: len(mask)]

    PoissonSampling.select = one_coin  # type: ignore[method-assign]


def accountant_reset() -> None:
    """Every round is accounted for as if it were the first."""
    from privacy.ledger import Ledger

    commit = Ledger.commit

    def forgetful(self: Any, reservation: Any) -> None:
        commit(self, reservation)
        for spent in self._spent.values():
            spent.clear()

    Ledger.commit = forgetful  # type: ignore[method-assign]


def budget_lost_on_restart() -> None:
    """What was spent before a restart is forgotten; within one process everything is counted."""
    from privacy.ledger import Ledger

    init = Ledger.__init__

    def fresh(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for spent in self._spent.values():
            spent.clear()

    Ledger.__init__ = fresh  # type: ignore[method-assign]


def no_clipping() -> None:
    """Noise is added to sums that nothing bounds."""
    from privacy import clipping

    def unclipped(self_or_rows: Any, group: Any, num_groups: int, max_grad_norm: float) -> Any:
        sums = np.zeros((num_groups, self_or_rows.shape[1]))
        np.add.at(sums, group, self_or_rows.astype(np.float64))
        return [clipping.ClippedSum(total, max_grad_norm) for total in sums]

    _replace_clip(unclipped)


def _replace_clip(function: Any) -> None:
    from fedpref.client import contribution
    from privacy import clipping

    for module in (clipping, contribution):
        if hasattr(module, "clip_and_sum"):
            module.clip_and_sum = function


def moved_after_wrapping() -> None:
    """The trainable tensors are remembered, then the model is moved: it computes with other tensors from then on."""
    import copy

    from fedpref.client.node import Node

    init = Node.__init__

    def moved(self: Any, **kwargs: Any) -> None:
        init(self, **kwargs)
        self._head = copy.deepcopy(self._head)  # what `.to(device)` does to a model that must change storage

    Node.__init__ = moved  # type: ignore[method-assign]


def same_noise_on_two_clients() -> None:
    """The stream of a seed does not depend on the client."""
    from privacy.rng import SeededNonPrivateRandom

    stream = SeededNonPrivateRandom.stream

    def shared(self: Any, purpose: str, **labels: Any) -> Any:
        labels.pop("client", None)
        return stream(self, purpose, **labels)

    SeededNonPrivateRandom.stream = shared  # type: ignore[method-assign]


def sensitivity_by_hand() -> None:
    """Contributions are clipped to one number; the bound that sizes the noise is typed in elsewhere."""
    from privacy import clipping

    clip = clipping.clip_and_sum

    def other_bound(rows: Any, group: Any, num_groups: int, max_grad_norm: float) -> Any:
        sums = clip(rows, group, num_groups, 2.0 * max_grad_norm)
        return [clipping.ClippedSum(total.value, max_grad_norm) for total in sums]

    _replace_clip(other_bound)


def rows_clipped() -> None:
    """Every record is clipped by itself before a unit's records are added up; the unit's sum is not."""
    from fedpref.client import head
    from privacy.clipping import clip_and_sum

    gradients = head.per_unit_gradients

    class Record:
        """A batch whose every record is its own unit."""

        def __init__(self, batch: Any) -> None:
            import torch

            self._batch, self.row_unit = batch, torch.arange(len(batch.row_unit))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._batch, name)

    def per_record(model: Any, objective: Any, batch: Any, num_units: int, *rest: Any, **more: Any) -> Any:
        import torch

        own = gradients(model, objective, Record(batch), len(batch.row_unit), *rest, **more)
        rows = own.numpy() if hasattr(own, "numpy") else own
        clipped = clip_and_sum(rows, np.arange(len(rows)), len(rows), _BOUND)
        total = np.zeros((num_units, rows.shape[1]))
        np.add.at(total, batch.row_unit.numpy(), np.array([c.value for c in clipped]).reshape(rows.shape))
        return torch.from_numpy(total)

    head.per_unit_gradients = per_record
    no_clipping()


_BOUND = 0.4  # the bound of the killers' mechanism


def metrics_beside_the_weights() -> None:
    """The realised cohort is tracked beside the noised release."""
    from fedpref import tracking

    tracking.RELEASED_FIGURES = tracking.RELEASED_FIGURES | {"cohort_size"}  # type: ignore[misc]


def project_forgets_other_runs() -> None:
    """A second run on the same people begins with an empty account."""
    from privacy.project_book import ProjectBook

    join = ProjectBook.join

    def alone(self: Any, run: Any, **kwargs: Any) -> Any:
        for spent in self._totals.values():
            spent.clear()
        return join(self, run, **kwargs)

    ProjectBook.join = alone  # type: ignore[method-assign]


def terms_after_the_data() -> None:
    """A client's terms are asked only when its contribution is ready."""
    from fedpref.client.node import Node

    Node._refusals = lambda self, number: {}  # type: ignore[method-assign]


def survivor_lists() -> None:
    """A client answers a second list of survivors: who is on the first and not on the second loses both secrets."""
    from privacy.secagg.client import SecAggClient

    def open_ended(self: Any, r: Any, kind: str, header: bytes, reply: bytes) -> bytes:
        r.replies[kind] = (header, reply)  # nothing is erased, and the round stays open
        return reply

    SecAggClient._finished = open_ended  # type: ignore[method-assign]


def mask_seeds() -> None:
    """Pads follow from the first 32 bits of their keys; all sums come out right."""
    from privacy.secagg import masks

    stream = masks._stream
    masks._stream = lambda key: stream(key[:4] + bytes(28))


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "weighted_mean",
        "Weighted mean under noise sized for a uniform one",
        ("tests/fedpref/test_server.py::test_the_release_is_the_sum_plus_one_draw_of_the_planned_noise",),
        weighted_mean,
    ),
    Mutant(
        "shuffled_loader",
        "Poisson loader discarded for a shuffled one",
        ("tests/privacy/test_sampling.py::test_the_cohort_size_is_binomial",),
        shuffled_loader,
    ),
    Mutant(
        "client_coins",
        "client coin booked as user Poisson",
        ("tests/privacy/test_sampling.py::test_the_cohort_size_is_binomial",),
        client_coins,
    ),
    Mutant(
        "accountant_reset",
        "accountant reset each round",
        (LEDGER + "test_exactly_the_rounds_that_fit_the_budget_are_reserved_and_the_next_writes_nothing",),
        accountant_reset,
    ),
    Mutant(
        "budget_lost_on_restart",
        "budget lost on restart",
        (LEDGER + "test_the_budget_survives_restarts",),
        budget_lost_on_restart,
    ),
    Mutant(
        "no_clipping",
        "noise without clipping",
        (NODE + "test_a_person_with_long_gradients_moves_a_message_by_the_clipping_norm_and_no_more",),
        no_clipping,
    ),
    Mutant(
        "moved_after_wrapping",
        "LoRA moved to the device after wrapping",
        (NODE + "test_a_rounds_contribution_is_that_of_a_slow_loop_over_people",),
        moved_after_wrapping,
    ),
    Mutant(
        "same_noise_on_two_clients",
        "same seed, same noise on two clients",
        ("tests/privacy/test_mechanism.py::test_two_clients_with_one_seed_add_different_noise_in_every_round",),
        same_noise_on_two_clients,
    ),
    Mutant(
        "sensitivity_by_hand",
        "per-record sensitivity typed by hand apart from the clipping norm",
        (NODE + "test_a_person_with_long_gradients_moves_a_message_by_the_clipping_norm_and_no_more",),
        sensitivity_by_hand,
    ),
    Mutant(
        "rows_clipped",
        "rows clipped instead of pairs",
        (NODE + "test_a_person_with_long_gradients_moves_a_message_by_the_clipping_norm_and_no_more",),
        rows_clipped,
    ),
    Mutant(
        "survivor_lists",
        "overlap of survivor and dropped lists",
        ("tests/adversary/test_secagg_server.py::test_no_two_lists_of_survivors_are_answered_by_one_client",),
        survivor_lists,
    ),
    Mutant(
        "mask_seeds",
        "masks from a 32-bit seed",
        ("tests/privacy/secagg/test_primitives.py::test_pads_are_the_key_stream_of_aes_and_cancel",),
        mask_seeds,
    ),
    Mutant(
        "metrics_beside_the_weights",
        "un-noised metrics beside noised weights",
        ("tests/fedpref/test_run_privacy.py::test_a_figure_that_is_not_on_the_list_reaches_no_tracker",),
        metrics_beside_the_weights,
    ),
    Mutant(
        "project_forgets_other_runs",
        "(ours) a second run on the same people starts from nothing",
        ("tests/privacy/test_project.py::test_a_second_run_adds_to_the_first_and_the_cap_holds_for_both",),
        project_forgets_other_runs,
    ),
    Mutant(
        "terms_after_the_data",
        "(ours) terms that are not asked before the data are touched",
        (
            "tests/fedpref/test_books.py::"
            "test_one_client_that_refuses_sends_a_coded_failure_and_the_run_of_the_others_goes_on",
        ),
        terms_after_the_data,
    ),
)
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
