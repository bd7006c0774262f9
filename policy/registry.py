"""Objectives by name: what a recipe may ask for, which columns it needs, and what is refused. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any, Literal

from policy.coupled import COUPLED, check_loss_type, couples, unknown
from reward.errors import ObjectiveNameError

__all__ = ["COUPLED", "ENTRY_POINTS", "OBJECTIVES", "BatchKind", "Objective", "ObjectiveSpec", "find_objective"]
ENTRY_POINTS = "fedpref.objectives"
BatchKind = Literal["pairs", "choices", "unpaired", "completions", "groups"]
Objective = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective as the registry offers it.

    Attributes:
        columns: of the data set, in TRL's names; ``?`` behind a column that may be missing.
        batch: what the collator makes: ``reward.batches.PairBatch``, ``SelectorBatch``, or ``policy.batches``.
        build: settings -> ``(model, batch) -> loss per record [n]``; called with what the recipe says.
        loss_types: allowed values of ``loss_type``, the default first; empty where there is only one loss, which may then be
            asked for by the objective's name.
        reference: does the batch need the reference model's log-probabilities?
        score: is the model one with a score (``reward.model``) rather than a causal language model?
    """

    name: str
    columns: tuple[str, ...]
    batch: BatchKind
    build: Callable[..., Objective]
    loss_types: tuple[str, ...] = ()
    reference: bool = False
    score: bool = False

    def __call__(self, settings: Mapping[str, Any] | None = None) -> Objective:
        """The objective with these settings (``loss_type``, ``beta``, ...).

        Raises:
            ObjectiveNameError: a loss type that is unknown or couples records, or a setting that the objective lacks, does
                not take, or that is out of its range.
        """
        given = dict(settings or {})
        offered = self.loss_types or (self.name,)
        check_loss_type(self.name, given.setdefault("loss_type", offered[0]), offered)
        if not self.loss_types:
            del given["loss_type"]  # the only loss there is, which the class is not told
        try:
            return self.build(**given)
        except (TypeError, ValueError) as error:
            raise ObjectiveNameError(
                f"The objective {self.name!r} does not take these settings.",
                f"{error}.",
                "Give the settings that its class documents.",
            ) from None


def find_objective(name: str, objectives: Mapping[str, ObjectiveSpec] | None = None) -> ObjectiveSpec:
    """An objective by its name here, in ``objectives`` (given through the API), or of the entry point group.

    A name of this version cannot be taken over. A plug-in is an ``ObjectiveSpec``; a recipe names it, never a path to code.

    Raises:
        ObjectiveNameError: no such name, a loss that couples records, or a plug-in that cannot be loaded.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if name in COUPLED:
        raise couples(name, tuple(OBJECTIVES))
    if objectives and name in objectives:
        return objectives[name]
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise unknown(
            "There is no objective",
            name,
            (*OBJECTIVES, *(objectives or {}), *sorted(found)),
            f"Install the package that offers it as an entry point of `{ENTRY_POINTS}`.",
        )
    try:
        spec = found[name].load()
    except Exception as error:  # another package's import may raise anything
        raise ObjectiveNameError(
            f"The objective {name!r} cannot be loaded.",
            f"{type(error).__name__}: {error}"[:200],
            "Mend or reinstall the package that offers it.",
        ) from error
    if not isinstance(spec, ObjectiveSpec):
        raise ObjectiveNameError(
            f"The plug-in {name!r} is no objective.",
            f"Its entry point gives a {type(spec).__name__}.",
            "Let it give a policy.registry.ObjectiveSpec.",
        )
    return spec


def _make(kind: Callable[..., Objective], settings: Mapping[str, Any]) -> Objective:
    """An objective's class with settings that it has.

    Raises:
        TypeError: a setting that it lacks, told with those that there are.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type] # every class below is a dataclass
    lacking = sorted(set(settings) - set(known))
    if lacking:
        raise TypeError(f"There is no setting {', '.join(lacking)}; there is {', '.join(known) or 'none'}")
    return kind(**settings)


# Each imports its class when it is first built: reading a recipe needs no torch.


def _bradley_terry(**settings: Any) -> Objective:
    from reward.objectives import BradleyTerryObjective

    return _make(BradleyTerryObjective, settings)


def _binary_selector(**settings: Any) -> Objective:
    from reward.objectives import SelectorObjective

    return _make(SelectorObjective, settings)


def _dpo(**settings: Any) -> Objective:
    from policy.objectives import DpoObjective

    return _make(DpoObjective, settings)


def _kto(**settings: Any) -> Objective:
    from policy.objectives import KtoObjective

    return _make(KtoObjective, settings)


def _sft(**settings: Any) -> Objective:
    from policy.objectives import SftObjective

    return _make(SftObjective, settings)


def _grpo(**settings: Any) -> Objective:
    from policy.objectives import GrpoObjective

    return _make(GrpoObjective, settings)


_DPO_LOSSES = (
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "exo_pair",
    "nca_pair",
    "sigmoid_norm",
)
_PAIR = ("prompt", "chosen", "rejected")

OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        ObjectiveSpec(
            "bradley_terry",
            (*_PAIR, "margin?"),
            "pairs",
            _bradley_terry,
            score=True,
        ),
        ObjectiveSpec("binary_selector", _PAIR, "choices", _binary_selector),
        ObjectiveSpec("dpo", _PAIR, "pairs", _dpo, _DPO_LOSSES, reference=True),
        ObjectiveSpec(
            "kto",
            ("prompt", "completion", "label"),
            "unpaired",
            _kto,
            reference=True,
        ),
        ObjectiveSpec("sft", ("prompt", "completion"), "completions", _sft),
        ObjectiveSpec("grpo", ("prompt",), "groups", _grpo, ("dr_grpo", "grpo")),
    )
}
