"""What leaves a finished run: reward model, model card, manifest with digests and ledger heads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fedpref.config import Recipe
from fedpref.data.digests import spec_digests
from fedpref.data.spec import DatasetSpec
from fedpref.federated_evaluation import federated_text, is_federated
from fedpref.journal import make_folder, write_durably
from fedpref.manifest import reward_manifest
from fedpref.plan import Plan, data_names
from fedpref.version import __version__
from privacy.chain import read_chain
from privacy.report import Report
from privacy.report.build import FEDERATION, evaluation_paths, label_paths, ledger_paths, project_paths
from privacy.report.text import epsilon_text
from privacy.signing import SigningKey, key_path
from privacy.signing_files import read_signed_head
from reward.scorer import RewardModel, reward_model_files

RUN_FILES = (  # what else a reader may be shown of a run
    "recipe.yaml",
    "plan.json",
    "metrics.jsonl",
    "evaluation.json",
    "policy_metrics.jsonl",
    "policy_evaluation.json",
    "samples.json",
)


_SCORING = (
    "import reward",
    'model = reward.load("release/reward")',
    'model.score(["Why read books?"], ["Because they last."])   # also a TRL reward function: reward_funcs=[model]',
)


def write_reward_model(folder: Path, model: RewardModel) -> None:
    """``release/reward``: loads by ``reward.load``.

    Raises:
        DiskError: the disk refused; every file is whole or not there.
    """
    make_folder(folder)
    for name, content in reward_model_files(
        model.extractor.config, model.projection, model.weight, model.layout
    ).items():
        write_durably(folder / name, content)


def write_model_card(
    folder: Path, plan: Plan, datasets: list[DatasetSpec], report: Report, evaluation: dict[str, Any]
) -> None:
    """``README.md`` beside the weights: data, privacy, evaluation, use."""
    recipe = plan.recipe
    lines = [
        "# A reward model trained by fedpref",
        "",
        head_line(recipe),
        "",
        "```python",
        *_SCORING,
        "```",
        "",
        "## Data",
        *(f"- {_data_line(spec)}" for spec in datasets),
        "",
        *_privacy_section(report),
        f"## Evaluation ({_whose(plan)})",
        *(f"- {name}: {_figure(block)}" for name, block in evaluation.items()),
        "",
        "## Limits",
        "It ranks texts as the people who voted did, with their taste and errors; it is no judge of truth or safety.",
    ]
    write_durably(folder / "README.md", ("\n".join(lines) + "\n").encode())


def _privacy_section(report: Report) -> list[str]:
    """Who is protected, against whom, by how much, under which assumptions."""
    return [
        "## Privacy",
        report.summary,
        "",
        "| adversary | promise |",
        "|---|---|",
        *(f"| {row['described']} | {epsilon_text(row)} |" for row in report.fields["claim"]),
        "",
        "Assumptions:",
        *(f"- {text}" for text in report.fields["assumptions"]),
        "",
    ]


def head_line(recipe: Recipe) -> str:
    """What a reward model is, in a sentence."""
    r, size = recipe.head, reward_manifest(recipe.head).dimension
    kind = "linear" if r.trainable == "head" else f"{r.mlp_hidden_dim}-unit MLP"
    layers = (
        f"layer {r.layer}" if r.layers is None else f"layers {', '.join(map(str, r.layers))}, mixed by trained weights,"
    )
    return (
        f"A {kind} Bradley-Terry head on the mean of {layers} of `{recipe.model_name_or_path}`, "
        f"projected to {r.projection_dim} dimensions: {size:,} trained numbers."
    )


def write_adapter_card(
    folder: Path, plan: Plan, datasets: list[DatasetSpec], report: Report, evaluation: dict[str, Any]
) -> None:
    """``README.md`` beside an adapter that clients trained: data, privacy, evaluation, use."""
    recipe, training = plan.recipe, plan.recipe.adapter
    loader = "reward.model.load_score_backbone" if training.spec.score else "reward.backbone.load_backbone"
    room, function = loader.rsplit(".", 1)
    lines = [
        f"# An adapter trained by fedpref ({training.objective.upper()})",
        "",
        f"`{training.adapter}` of `{recipe.model_name_or_path}`, trained on the clients for {plan.num_rounds} rounds "
        f"(loss {training.loss_type}).",
        "",
        "```python",
        *(_SCORING if training.spec.score else ()),
        "from peft import PeftModel",
        f"from {room} import {function}",
        f'base = {function}("{recipe.model_name_or_path}")',
        f'model = PeftModel.from_pretrained(base.model, "release/{folder.name}")',
        "```",
        "",
        "## Data",
        *(f"- {_data_line(spec, 'private records')}" for spec in datasets),
        "",
        *_privacy_section(report),
        "## Evaluation (records of evaluation users, who are not protected)",
        *(line for name, block in evaluation.items() for line in adapter_lines(name, block)),
    ]
    write_durably(folder / "README.md", ("\n".join(lines) + "\n").encode())


def adapter_lines(name: str, block: dict[str, Any]) -> list[str]:
    """The figures of one group of evaluation users' records before and after, a line each."""
    if not block["records"]:
        return [f"- {name}: no records"]
    lines = [f"- {name}: {block['records']} records of {block['users']} users"]
    for key, row in block["measures"].items():
        spread = f" [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]" if row["interval"] else ""
        figures = f"{row['before']:.3f} -> {row['after']:.3f}, difference {row['difference']:+.3f}{spread}"
        lines.append(f"  - {key} ({row['better']}): {figures}")
    return lines


def write_policy_card(folder: Path, plan: Plan, evaluation: dict[str, Any]) -> None:
    """``release/policy/README.md``: what the adapter is, how to load it, what it cost in privacy, how it compares."""
    recipe, policy = plan.recipe, plan.recipe.policy
    if policy is None:
        return
    lines = [
        "# A policy improved by fedpref",
        "",
        f"A LoRA adapter of `{recipe.model_name_or_path}`, trained by {policy.method.upper()} for {policy.max_steps} steps on "
        f"the public prompts {', '.join(f'`{name}`' for name in policy.prompts)}; reward: {', '.join(policy.reward_funcs)}.",
        "",
        "```python",
        "from peft import PeftModel",
        "from reward.backbone import load_backbone",
        f'base = load_backbone("{recipe.model_name_or_path}")',
        'model = PeftModel.from_pretrained(base.model, "release/policy")   # model.merge_and_unload() for plain transformers',
        "```",
        "",
        "## Privacy",
        "Prompts, settings and the choice of the last step are public, and the reward model was released before: this is "
        "post-processing, and spends no epsilon beyond what `release/reward` says. Inputs and digests: "
        "`fedpref_policy.json`.",
        "",
        "## Evaluation (public prompts; a held-out judge is a reward model fitted on evaluation users, never a human)",
        *(["No held-out judge: `evaluation.federated` keeps evaluation users' votes."] * recipe.evaluation.federated),
        *(line for name, block in evaluation.items() for line in policy_lines(name, block)),
        "",
        "## Limits",
        "It argues to please the people who voted; it is no more truthful than its base model.",
    ]
    write_durably(folder / "README.md", ("\n".join(lines) + "\n").encode())


def policy_lines(name: str, block: dict[str, Any]) -> list[str]:
    """The figures of one group of prompts, a line each."""
    lines = [f"- {name}: {block['prompts']} prompts, {block['completions']} completions of either model"]
    for judge, table in block["judges"].items():
        lines += [
            f"  - win rate over the base model, by the {judge}: {_percent(table['win_rate'], table['interval'])}; "
            f"length-controlled {_percent(table['length_controlled_win_rate'], table['length_controlled_interval'])}",
        ]
        if table["worst_topic"]:
            lines.append(f"  - worst topic: {table['worst_topic']} {100 * table['topics'][table['worst_topic']]:.0f} %")
    for reward, means in block["rewards"].items():
        if means["prompts"]:
            lines.append(f"  - reward `{reward}`: {_before_after(means)}")
    kl = block["kl_to_base"]["nats_per_completion"]
    return [
        *lines,
        f"  - tokens: {_before_after(block['length'])}",
        f"  - KL to the base model: {kl:.1f} nats a completion",
    ]


def _percent(value: float, interval: tuple[float, float] | None) -> str:
    between = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * value:.1f} %{between}"


def _before_after(means: dict[str, Any]) -> str:
    between = means["difference_interval"]
    spread = f" [{between[0]:+.3f}, {between[1]:+.3f}]" if between else ""
    return f"{means['base']:.3f} -> {means['policy']:.3f}, difference {means['difference']:+.3f}{spread}"


def write_manifest(run: Path, plan: Plan) -> dict[str, Any]:
    """``release/manifest.json``: digests of every released file, the recipe's digest, the signed heads of all ledgers.

    The federation's key signs all of it; so whoever knows that key's fingerprint has an anchor for every ledger.
    """
    release = run / "release"
    files = sorted(
        p for p in release.rglob("*") if p.is_file() and p != release / "manifest.json" and not p.name.startswith(".")
    )
    books = [*ledger_paths(run), *label_paths(run), *evaluation_paths(run), *project_paths(run)]
    signed = {str(p.relative_to(run)): head for p in books if (head := read_signed_head(p)) is not None}
    key = SigningKey.at(key_path(run / FEDERATION))
    manifest: dict[str, Any] = {
        "schema": "fedpref-release-1",
        "fedpref": __version__,
        "plan_digest": plan.digest,
        "data": spec_digests(plan.recipe, *data_names(plan.recipe)),
        "files": {str(p.relative_to(release)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "run_files": {
            name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in RUN_FILES if (run / name).exists()
        },
        "ledger_heads": {str(p.relative_to(run)): read_chain(p).head for p in books},
        "signed_heads": {name: head.to_json() for name, head in signed.items()},
        "public_key": key.public,
    }
    manifest["signature"] = key.sign(manifest)
    write_durably(release / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def _data_line(spec: DatasetSpec, kind: str = "") -> str:
    """``kind``: what the run held it to be; what clients train on is private whatever its description says."""
    kind = kind or ("public text" if spec.public else "private votes")
    parts = [f"`{spec.name}` ({kind}, {spec.license}): {spec.description}", spec.attribution, spec.reason]
    return " ".join(part.strip() for part in parts if part)


def _whose(plan: Plan) -> str:
    if plan.evaluation is None:
        return "votes of evaluation users, who are not protected"
    return "noised counts of evaluation users, who have books of their own: `evaluation.jsonl`"


def _figure(block: dict[str, Any]) -> str:
    if is_federated(block):
        return federated_text(block)
    if not block.get("pairs"):
        return "no pairs"
    low_high = block["interval"]
    between = f", 95 % interval {100 * low_high[0]:.1f} to {100 * low_high[1]:.1f}" if low_high else ""
    people = "unknown" if block["users"] is None else f"{block['users']:,}"
    return (
        f"reward accuracy {100 * block['reward_accuracy']:.1f} % on {block['pairs']:,} pairs of {people} users"
        f"{between}; longer-is-better {100 * block['longer_is_better']:.1f} %{_worst(block)}"
    )


def _worst(block: dict[str, Any]) -> str:
    """The topic on which the model serves people least."""
    if not block["worst_topic"]:
        return ""
    figures = block["topics"][block["worst_topic"]]
    return f"; worst topic `{block['worst_topic']}`: {100 * figures['reward_accuracy']:.1f} % on {figures['pairs']:,} pairs"
