"""Losses and settings of TRL under which one record changes what another contributes: refused by name. No torch.

Clipping bounds what one unit can do to a sum only if the unit's gradient is a function of its own records (guarantees.md
rule 13); under these it is not.
"""

from __future__ import annotations

from collections.abc import Collection

from policy.plugins import nearest
from reward.errors import ObjectiveNameError

COUPLED: dict[str, str] = {
    "aot": "it sorts the log-ratios of all pairs of the batch",
    "aot_pair": "it sorts the log-ratios of all pairs of the batch",
    "aot_unpaired": "it sorts the log-ratios of all answers of the batch",
    "bco_pair": "its rewards are shifted by a running mean over batches (TRL's form leaves the shift out: another loss)",
    "dpo=sft": "as a term of DPO it is the mean over all tokens of the batch; the objective `sft` divides by the record's own",
    "nll": "it divides by the tokens of the whole batch; the objective `sft` divides by the record's own",
    "dft": "it divides by the tokens of the whole batch",
    "dapo": "it divides by the tokens of the whole batch",
    "bnpo": "it divides by the tokens of the whole batch",
    "cispo": "it divides by the tokens of the whole batch",
    "vespo": "it divides by the tokens of the whole batch",
    "kto_batch_kl": "its reference point is a mean over other records of the batch; the objective `kto` is given a fixed one",
    "scale_rewards=batch": "it divides every advantage by the deviation of all prompts' rewards",
    "multi_objective_aggregation=normalize_then_sum": "it divides by the deviation of all prompts' rewards",
}
"""Name, or setting=value -> how it couples records."""


def check_loss_type(owner: str, loss_type: str, offered: Collection[str]) -> None:
    """Refuse a loss type, or a setting's value, that is not offered.

    Args:
        owner: the objective's or the setting's name, for the message; ``owner=loss_type`` is looked up as well.

    Raises:
        ObjectiveNameError: it couples the records of a batch, or is unknown.
    """
    if loss_type in offered:
        return
    for name in (loss_type, f"{owner}={loss_type}"):
        if name in COUPLED:
            raise couples(name, offered)
    raise unknown(f"{owner} has no choice", loss_type, offered)


def couples(name: str, offered: Collection[str]) -> ObjectiveNameError:
    """The error for a name of ``COUPLED``."""
    return ObjectiveNameError(
        f"{name!r} couples the records of a batch.",
        f"For {COUPLED[name]}: one person's records move another's gradient, and clipping each of them bounds nothing.",
        f"Use one of: {', '.join(offered)}.",
    )


def unknown(what: str, name: str, offered: Collection[str], otherwise: str = "") -> ObjectiveNameError:
    """The error for a name that nothing has, with the nearest one that there is."""
    fix = nearest(name, offered, otherwise or "Use one of these.")
    return ObjectiveNameError(f"{what} {name!r}.", f"There are: {', '.join(offered)}.", fix)
