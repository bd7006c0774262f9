"""fedpref plan"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.report.build import rounded_up

if TYPE_CHECKING:
    from fedpref.plan import AdversaryRow, Plan


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe by path or shipped name.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Say what a run would do and cost: noise, epsilon per adversary, bytes, time. Trains nothing, reads no data."""
    from fedpref.recipes import find_recipe, parse_override, read_recipe

    loaded = read_recipe(find_recipe(recipe), dict(parse_override(text) for text in overrides or []))
    from fedpref.plan import make_plan

    the_plan = make_plan(loaded)
    if as_json:
        typer.echo(the_plan.to_json_text(), nl=False)
        return
    for line in plan_lines(the_plan):
        typer.echo(line)


def plan_lines(the_plan: Plan) -> Iterator[str]:
    """The plan as text."""
    p, f = the_plan.recipe.privacy, the_plan.recipe.federation
    yield f"plan {the_plan.digest[:12]}: {f.num_rounds} rounds, unit {p.unit.value}, trust {p.trust.value}"
    yield (
        f"  noise multiplier {the_plan.noise_multiplier:g}, clipping norm {p.max_grad_norm:g}, "
        f"sample rate {p.sample_rate:g} (about {the_plan.divisor:g} {p.unit.value}s a round; the real number is secret)"
    )
    yield f"  {'against':<46} {'a round':>14} {'in total':>14}   (unit {p.unit.value}, delta {p.target_delta:g})"
    for row in the_plan.rows:
        yield _row(row)
    if the_plan.node_rows:
        yield "  what a client can vouch for by itself (un-amplified, if the server adds the promised noise):"
        yield from (_row(row) for row in the_plan.node_rows)
    if p.rng == "seeded":
        yield "  NOT PRIVATE: privacy.rng is `seeded`; the figures above hold only for `os`"
    memory = (
        "memory unknown (the model is not here)" if the_plan.memory_gb is None else f"about {the_plan.memory_gb:g} GB"
    )
    yield (
        f"  {the_plan.bytes_per_client:,} bytes per client, about {max(the_plan.minutes, 1):.0f} minutes on 2 cores, {memory}"
    )


def _row(row: AdversaryRow) -> str:
    def cell(value: float) -> str:
        return "none: trusted" if row.trusted else rounded_up(value) if math.isfinite(value) else "INFINITE"

    who = row.adversary.described.split(" (")[0]
    return f"    {who:<44} {cell(row.epsilon_per_round):>14} {cell(row.epsilon_total):>14}"
