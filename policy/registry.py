"""Objectives by name: one value each, which everything else asks; and what is refused. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

from policy.coupled import COUPLED, check_loss_type, couples, unknown
from policy.plugins import load_plugin
from reward.errors import ObjectiveNameError

__all__ = [
    "COUPLED",
    "ENTRY_POINTS",
    "OBJECTIVES",
    "BatchKind",
    "DpoLossType",
    "MeasureKind",
    "ObjectiveSpec",
    "find_objective",
]
ENTRY_POINTS = "fedpref.objectives"
BatchKind = Literal["pairs", "choices", "unpaired", "completions", "groups"]
MeasureKind = Literal["loss", "log_ratios", "scores", "choices", "token_loss", "mean_reward"]
DpoLossType = Literal[
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
]
Objective = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective: all that the federation has to know about it.

    Attributes:
        name: what a recipe says in ``training.objective``; for a plug-in, that of its entry point.
        batch: what a record is. ``pairs``: ``reward.batches.PairBatch``; ``choices``: ``SelectorBatch``; ``unpaired``,
            ``completions``, ``groups``: ``policy.batches``. Groups are completions that the client samples of its prompts.
        build: settings -> ``(model, batch) -> loss per record`` [n], as ``batch.weighted`` returns it.
        loss_types: allowed values of ``loss_type``, the default first, which ``build`` is then called with; empty where
            there is only one loss, which may then be asked for by the objective's name.
        settings: further keys of the recipe's block ``training`` that ``build`` is called with.
        beta: default of the recipe's ``beta``, which ``build`` is then called with; None: it has none.
        measure: on evaluation users. ``loss``: its own, per record; ``log_ratios``, ``scores``, ``choices``: how often the
            better answer comes first, by log pi/pi_ref, the model's score, or its choice; ``token_loss``: -log p of the
            better answer per token; ``mean_reward``: of ``groups``, and only of them.
        reference: does the batch (of ``pairs`` or ``unpaired``) need the reference model's log-probabilities?
        score: is the model one with a score (``reward.model``) rather than a causal language model? What is released is
            a reward model then.

    Raises:
        ObjectiveNameError: when made, with parts that do not go together.
    """

    name: str
    batch: BatchKind
    build: Callable[..., Objective]
    loss_types: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    beta: float | None = None
    measure: MeasureKind = "loss"
    reference: bool = False
    score: bool = False

    def __post_init__(self) -> None:
        check_loss_type("batch", self.batch, get_args(BatchKind))
        check_loss_type("measure", self.measure, get_args(MeasureKind))
        wrong = (
            (self.reference and self.batch not in {"pairs", "unpaired"}, "reference is for pairs and unpaired"),
            ((self.measure == "mean_reward") != (self.batch == "groups"), "mean_reward is the measure of groups"),
            (self.score and self.batch != "pairs", "a model with a score learns from pairs"),
            (
                self.score and self.measure not in {"scores", "loss"},
                "a model with a score is measured by scores or loss",
            ),
            (not self.score and self.measure == "scores", "scores are those of a model with a score"),
        )
        for is_wrong, why in wrong:
            if is_wrong:
                raise ObjectiveNameError(
                    f"The parts of the objective {self.name!r} do not go together.",
                    f"{why[0].upper()}{why[1:]}.",
                    "Mend its ObjectiveSpec.",
                )

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
        return _checked(name, objectives[name])
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise unknown(
            "There is no objective",
            name,
            (*OBJECTIVES, *(objectives or {}), *sorted(found)),
            f"Install the package that offers it as an entry point of `{ENTRY_POINTS}`.",
        )
    return _checked(name, load_plugin(found[name], "objective", ObjectiveNameError))


def _checked(name: str, spec: object) -> ObjectiveSpec:
    if isinstance(spec, ObjectiveSpec) and spec.name == name:
        return spec
    given = f"an ObjectiveSpec named {spec.name!r}" if isinstance(spec, ObjectiveSpec) else f"a {type(spec).__name__}"
    raise ObjectiveNameError(
        f"{name!r} is no objective.",
        f"What is offered under this name is {given}.",
        f"Offer a policy.registry.ObjectiveSpec whose name is {name!r}.",
    )


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


OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        ObjectiveSpec(
            "bradley_terry", "pairs", _bradley_terry, settings=("label_smoothing",), measure="scores", score=True
        ),
        ObjectiveSpec("binary_selector", "choices", _binary_selector, measure="choices"),
        ObjectiveSpec(
            "dpo",
            "pairs",
            _dpo,
            get_args(DpoLossType),
            settings=("label_smoothing",),
            beta=0.1,
            measure="log_ratios",
            reference=True,
        ),
        ObjectiveSpec(
            "kto",
            "unpaired",
            _kto,
            settings=("desirable_weight", "undesirable_weight"),
            beta=0.1,
            measure="log_ratios",
            reference=True,
        ),
        ObjectiveSpec("sft", "completions", _sft, measure="token_loss"),
        ObjectiveSpec(
            "grpo",
            "groups",
            _grpo,
            ("dr_grpo", "grpo"),
            settings=("max_completion_length", "temperature"),
            beta=0.0,
            measure="mean_reward",
        ),
    )
}
