"""fedpref plan"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.units import Adversary, Trust, further_adversaries

if TYPE_CHECKING:
    from fedpref.cohort import SecureCosts
    from fedpref.config import Recipe
    from fedpref.federated_evaluation import EvaluationPlan
    from fedpref.plan import AdversaryRow, Plan


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe by path or shipped name.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value")] = None,
    sweep: Annotated[
        str | None, typer.Option(help="privacy key and values, e.g. target_epsilon=0.5,1,2,4,8: one plan for each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Say what a run would do and cost: noise, epsilon per adversary, bytes, time. Trains nothing, reads no data."""
    from fedpref.recipes import find_recipe, parse_override, read_recipe

    loaded = read_recipe(find_recipe(recipe), dict(parse_override(text) for text in overrides or []))
    if sweep is not None:
        _sweep(loaded, sweep, as_json=as_json)
        return
    from fedpref.plan import make_plan

    the_plan = make_plan(loaded)
    if as_json:
        typer.echo(the_plan.to_json_text(), nl=False)
        return
    for line in plan_lines(the_plan):
        typer.echo(line)


def _sweep(recipe: Recipe, text: str, *, as_json: bool) -> None:
    from fedpref.plan import sweep
    from fedpref.recipes import parse_override

    key, _, values = text.partition("=")
    key = key.removeprefix("privacy.")
    plans = sweep(recipe, key, [parse_override(f"{key}={value}")[1] for value in values.split(",")])
    shown = values.split(",")
    if as_json:
        rows = [{key: value, **plan.to_json()} for value, plan in zip(shown, plans, strict=True)]
        typer.echo(json.dumps({"schema": "fedpref-sweep-1", "key": f"privacy.{key}", "plans": rows}, indent=2))
        return
    for line in sweep_lines(key, shown, plans):
        typer.echo(line)


def sweep_lines(key: str, values: list[str], plans: list[Plan]) -> Iterator[str]:
    """A table: one line per value, one column per adversary."""
    p = plans[0].recipe.privacy
    yield f"unit {p.unit.value}, trust {p.trust.value}, delta {p.target_delta:g}; epsilon in total, against"
    heads = [row.adversary.value.replace("_", " ") for row in plans[0].rows]
    alone = [f"{row.adversary.value.replace('_', ' ')} (alone)" for row in plans[0].node_rows if not row.trusted]
    table = [[key, "noise multiplier", *heads, *alone]]
    for value, plan in zip(values, plans, strict=True):
        rows = (*plan.rows, *(row for row in plan.node_rows if not row.trusted))
        table.append([value, f"{plan.noise_multiplier:g}", *(_cell(row, row.epsilon_total) for row in rows)])
    widths = [max(map(len, column)) + 2 for column in zip(*table, strict=True)]
    for line in table:
        yield "".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
    if alone:
        yield "  (alone): what a client can vouch for by itself, un-amplified"
    if p.rng == "seeded":
        yield "  NOT PRIVATE: privacy.rng is `seeded`; the figures above hold only for `os`"


_SAMPLING = {
    "poisson": "the real number is secret",
    "truncated_poisson": "the real number is secret, and cut in every client",
    "capped": "chosen in the open: no amplification",
    "fixed_order": "a fixed order that everybody knows: no amplification",
}


def plan_lines(the_plan: Plan) -> Iterator[str]:
    """The plan as text."""
    p, f = the_plan.recipe.privacy, the_plan.recipe.federation
    yield f"plan {the_plan.digest[:12]}: {f.num_rounds} rounds, unit {p.unit.value}, trust {p.trust.value}"
    yield (
        f"  noise multiplier {the_plan.noise_multiplier:g}, clipping norm {p.max_grad_norm:g}"
        f"{'' if p.clipping == 'fixed' else ' at first (adaptive)'}, "
        f"sample rate {p.sample_rate:g} (about {the_plan.divisor:g} {p.unit.value}s a round; {_SAMPLING[p.sampling]})"
    )
    yield f"  {'against':<46} {'a round':>14} {'in total':>14}   (unit {p.unit.value}, delta {p.target_delta:g})"
    for row in the_plan.rows:
        yield _row(row)
    for other in further_adversaries(p.trust, the_plan.colluders, the_plan.outvoted):
        if the_plan.colluders is not None and other.name == "server_and_colluding_clients":
            yield _row(the_plan.rows[-1], other.described)
        else:
            yield f"    {other.described:<44} {other.statement}"
    if the_plan.secure_costs is not None:
        yield from _secure_lines(the_plan, the_plan.secure_costs)
    if the_plan.node_rows:
        yield "  what a client can vouch for by itself (un-amplified, if the server adds the promised noise):"
        yield from (_row(row) for row in the_plan.node_rows)
    if the_plan.labels:
        labels = the_plan.labels
        most = labels.label_epsilon * labels.labels_per_unit
        yield (
            f"  labels: each flipped once with probability {labels.flip_probability:.3f}, label epsilon "
            f"{labels.label_epsilon:g}; at most {most:g} per {p.unit.value}, against everybody, beside the total above"
        )
    if the_plan.evaluation:
        yield from _evaluation(the_plan.evaluation)
    if the_plan.evaluation_costs:
        costs = the_plan.evaluation_costs
        moved = f"one client: {costs.bytes_up:,} bytes up, {costs.bytes_down:,} down"
        yield f"    {costs.trips} trips of secure aggregation more; {moved}"
    if p.rng == "seeded":
        yield "  NOT PRIVATE: privacy.rng is `seeded`; the figures above hold only for `os`"
    if the_plan.recipe.training is not None:
        yield adapter_line(the_plan)
    if the_plan.recipe.policy is not None:
        policy = the_plan.recipe.policy
        yield (
            f"  then {policy.max_steps} steps of {policy.method.upper()} on the public prompts {', '.join(policy.prompts)}: "
            "post-processing of the released reward model, no further epsilon"
        )
    memory = (
        "memory unknown (the model is not here)" if the_plan.memory_gb is None else f"about {the_plan.memory_gb:g} GB"
    )
    yield (
        f"  {_bytes(the_plan.bytes_per_client)} per client, about {max(the_plan.minutes, 1):.0f} minutes on 2 cores, {memory}"
    )


def _secure_lines(the_plan: Plan, costs: SecureCosts) -> Iterator[str]:
    """Trips, bytes and CPU of one client; how the noise was sized."""
    from fedpref.cohort import cohort_of

    cohort, p = cohort_of(the_plan.recipe), the_plan.recipe.privacy
    yield (
        f"  secure aggregation ({p.secure_aggregation}, {p.consistency}): sums of {cohort.least} to {cohort.largest} "
        f"clients; noise for the {cohort.honest_shares} honest shares that any unmasked sum holds, {p.colluders} colluding"
    )
    yield (
        f"    {costs.trips} trips in all; one client: {costs.participations} rounds, {costs.bytes_up:,} bytes up, "
        f"{costs.bytes_down:,} down, about {max(costs.cpu_seconds, 0.1):.1f} CPU seconds"
    )
    if costs.buckets is not None:
        cut = costs.buckets
        yield (
            f"    {cut.count} buckets, a sum of {cohort.least} to {cohort.largest} clients each; lying clients outvoted: "
            f"{cut.liars_outvoted}; {cut.fewest_buckets} must come through; {cut.noise_factor:.2f} times the noise of one sum"
        )
    surplus = (cohort.largest / cohort.honest_shares) ** 0.5
    yield f"    if everybody stays, the noise is {surplus:.2f} times the booked deviation (printed, never refunded)"
    if p.secure_aggregation == "simulated":
        yield "    SIMULATED: the integers are added without masks; nothing protects anybody from the server in this run"


def _evaluation(evaluation: EvaluationPlan) -> Iterator[str]:
    figures = {who: evaluation.epsilon(who) for who in Adversary}
    against = ", ".join(f"{who.value.replace('_', ' ')} {_epsilon_text(value)}" for who, value in figures.items())
    per_client = " in every client's own sum" if evaluation.mechanism.trust is Trust.LOCAL else ""
    yield (
        f"  federated evaluation: other people than train; {len(evaluation.groups)} groups ({', '.join(evaluation.groups)}), "
        f"one un-amplified release, noise of deviation {evaluation.mechanism.noise_std:.1f} people{per_client}"
    )
    yield f"    epsilon of an evaluation user, in books of their own (delta {evaluation.delta:g}), against: {against}"


def _epsilon_text(value: float | None) -> str:
    from privacy.report.build import rounded_up

    if value is None:
        return "none: trusted"
    return rounded_up(value) if math.isfinite(value) else "INFINITE: simulated"


def adapter_line(the_plan: Plan) -> str:
    """What is trained on the clients."""
    from fedpref.adapter_size import trainable_dimension

    training, size = the_plan.recipe.adapter, trainable_dimension(the_plan.recipe)
    numbers = "an unknown number of values" if size is None else f"{size:,} values"
    own = "local training, one update clipped once" if training.local else "one gradient at the broadcast parameters"
    return (
        f"  clients train {training.adapter} by {training.objective} ({training.loss_type}): {numbers}; "
        f"per {the_plan.recipe.privacy.unit.value} {own}"
    )


def _bytes(number: int | None) -> str:
    return "an unknown number of bytes" if number is None else f"{number:,} bytes"


def _cell(row: AdversaryRow, value: float) -> str:
    from privacy.report.build import rounded_up  # here: `fedpref --help` loads no numpy

    if row.simulated:
        return f"({rounded_up(value)})" if math.isfinite(value) else "INFINITE"
    return "none: trusted" if row.trusted else rounded_up(value) if math.isfinite(value) else "INFINITE"


def _row(row: AdversaryRow, described: str = "") -> str:
    who = described or row.adversary.described.split(" (")[0]
    return f"    {who:<44} {_cell(row, row.epsilon_per_round):>14} {_cell(row, row.epsilon_total):>14}"
