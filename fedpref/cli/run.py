"""fedpref run"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import typer

SHOWN = 2  # prompts whose answers are printed before and after


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe by path or shipped name.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, e.g. privacy.target_epsilon=4")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in output_dir.")] = False,
) -> None:
    """Train, release, report and evaluate. Everything lands in the recipe's output_dir."""
    from fedpref.recipes import find_recipe, parse_override, read_recipe

    loaded = read_recipe(find_recipe(recipe), dict(parse_override(text) for text in overrides or []))
    from fedpref.api import run as run_recipe
    from fedpref.cli.plan import plan_lines
    from fedpref.plan import make_plan
    from fedpref.terminal import make_display

    for line in plan_lines(make_plan(loaded)):
        typer.echo(line, err=True)
    try:
        with closing(make_display()) as display:
            finished = run_recipe(loaded, resume=resume, display=display)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: fedpref run {loaded.output_dir}/recipe.yaml --resume", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"\n{finished.report().summary}\n")
    for line in adapter_section(finished.evaluation):
        typer.echo(line)
    for name, block in finished.evaluation.items():
        if "measures" in block or "records" in block:
            continue
        typer.echo(evaluation_line(name, block))
        if block.get("worst_topic"):
            typer.echo(f"  worst topic: {worst_topic(block)}")
    for line in policy_section(finished.policy_evaluation, finished.samples):
        typer.echo(line)
    folder = finished.path
    training = finished.recipe.training
    scores = training is None or training.spec.score
    policy = "  release/policy        the adapter of the language model and its card\n" if finished.samples else ""
    own = "  release/policy        the adapter, for PeftModel.from_pretrained, and its card\n"
    head = f"  release/reward        the reward model and its card: reward.load('{folder}/release/reward')\n"
    typer.echo(
        f"\nResults are in {folder}:\n"
        f"{head + policy if scores else own}"
        f"  report.txt            who is protected, against whom, by how much\n"
        f"  ledger.jsonl          the books; metrics.jsonl the released figures of every round\n"
        f"Next:\n"
        f"  fedpref report {folder}\n"
        f"  fedpref verify {folder}" + (f"\n  fedpref eval {folder} --data YOUR_PAIRS.jsonl" if scores else "")
    )


def adapter_section(evaluation: dict[str, Any]) -> Iterator[str]:
    """An adapter that clients trained, before and after, on evaluation users' records."""
    from fedpref.release import adapter_lines

    for name, block in evaluation.items():
        if "records" in block:
            yield from adapter_lines(name, block)


def policy_section(evaluation: dict[str, Any], samples: list[dict[str, str]]) -> Iterator[str]:
    """The policy beside its base model: figures, and two answers before and after."""
    from fedpref.release import policy_lines

    if evaluation:
        yield "\nThe policy beside its base model (held-out judges are reward models, not people):"
    for name, block in evaluation.items():
        yield from policy_lines(name, block)
    for sample in samples[:: max(1, len(samples) // SHOWN)][:SHOWN]:
        yield f"\n{sample['prompt'].strip()}"
        yield textwrap.fill(sample["base"].strip(), 110, initial_indent="  before: ", subsequent_indent="          ")
        yield textwrap.fill(sample["policy"].strip(), 110, initial_indent="  after:  ", subsequent_indent="          ")


def evaluation_line(name: str, block: dict[str, object]) -> str:
    """One line of the evaluation table."""
    from fedpref.federated_evaluation import federated_text, is_federated  # here: `fedpref --help` loads no numpy

    if is_federated(block):
        return f"{name:<14} {federated_text(block)}"
    if not block.get("pairs"):
        return f"{name:<14} no pairs"
    interval = block["interval"]
    between = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if isinstance(interval, (list, tuple)) else ""
    return (
        f"{name:<14} reward accuracy {_percent(block['reward_accuracy'])}{between}"
        f"   longer-is-better {_percent(block['longer_is_better'])}"
        f"   {block['pairs']} pairs, {_people(block['users'])}"
    )


def worst_topic(block: dict[str, Any]) -> str:
    """The topic of lowest reward accuracy, with its figures."""
    figures = block["topics"][block["worst_topic"]]
    return (
        f"{block['worst_topic']}, {_percent(figures['reward_accuracy'])}"
        f" (longer-is-better {_percent(figures['longer_is_better'])}, {figures['pairs']} pairs)"
    )


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)


def _people(users: object) -> str:
    return "people unknown: the interval is over pairs" if users is None else f"{users} users"
