"""What leaves a finished run: reward model, model card, manifest with digests and ledger heads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fedpref.aggregation.optimizers import Vector
from fedpref.data.spec import DatasetSpec
from fedpref.journal import write_durably
from fedpref.plan import Plan
from fedpref.version import __version__
from privacy.chain import read_chain
from privacy.report import Report
from privacy.report.build import FEDERATION, ledger_paths, project_paths
from privacy.report.text import epsilon_text
from privacy.signing import SigningKey, key_path
from privacy.signing_files import read_signed_head
from reward.features import FeatureConfig
from reward.head import PublicProjection
from reward.scorer import save_reward_model


def write_reward_model(folder: Path, features: FeatureConfig, projection: PublicProjection, weight: Vector) -> None:
    """``release/reward``: loads by ``reward.load``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_reward_model(folder, features, projection, weight)


def write_model_card(
    folder: Path, plan: Plan, datasets: list[DatasetSpec], report: Report, evaluation: dict[str, Any]
) -> None:
    """``README.md`` beside the weights: data, privacy, evaluation, use."""
    recipe = plan.recipe
    lines = [
        "# A reward model trained by fedpref",
        "",
        f"A linear Bradley-Terry head on the mean of layer {recipe.reward.layer} of `{recipe.model_name_or_path}`, "
        f"projected to {recipe.reward.projection_dim} dimensions.",
        "",
        "```python",
        "import reward",
        'model = reward.load("release/reward")',
        'model.score(["Why read books?"], ["Because they last."])   # also a TRL reward function: reward_funcs=[model]',
        "```",
        "",
        "## Data",
        *(f"- {_data_line(spec)}" for spec in datasets),
        "",
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
        "## Evaluation (votes of evaluation users, who are not protected)",
        *(f"- {name}: {_figure(block)}" for name, block in evaluation.items()),
        "",
        "## Limits",
        "It ranks texts as the people who voted did, with their taste and errors; it is no judge of truth or safety.",
    ]
    write_durably(folder / "README.md", ("\n".join(lines) + "\n").encode())


def write_manifest(run: Path, plan: Plan) -> dict[str, Any]:
    """``release/manifest.json``: digests of every released file, the recipe's digest, the signed heads of all ledgers.

    The federation's key signs all of it; so whoever knows that key's fingerprint has an anchor for every ledger.
    """
    release = run / "release"
    files = sorted(
        p for p in release.rglob("*") if p.is_file() and p.name != "manifest.json" and not p.name.startswith(".")
    )
    books = [*ledger_paths(run), *project_paths(run)]
    signed = {str(p.relative_to(run)): head for p in books if (head := read_signed_head(p)) is not None}
    key = SigningKey.at(key_path(run / FEDERATION))
    manifest: dict[str, Any] = {
        "schema": "fedpref-release-1",
        "fedpref": __version__,
        "plan_digest": plan.digest,
        "files": {str(p.relative_to(release)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "ledger_heads": {str(p.relative_to(run)): read_chain(p).head for p in books},
        "signed_heads": {name: head.to_json() for name, head in signed.items()},
        "public_key": key.public,
    }
    manifest["signature"] = key.sign(manifest)
    write_durably(release / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def _data_line(spec: DatasetSpec) -> str:
    kind = "public text" if spec.public else "private votes"
    parts = [f"`{spec.name}` ({kind}, {spec.license}): {spec.description}", spec.attribution, spec.reason]
    return " ".join(part.strip() for part in parts if part)


def _figure(block: dict[str, Any]) -> str:
    if not block.get("pairs"):
        return "no pairs"
    low_high = block["interval"]
    between = f", 95 % interval {100 * low_high[0]:.1f} to {100 * low_high[1]:.1f}" if low_high else ""
    return (
        f"reward accuracy {100 * block['reward_accuracy']:.1f} % on {block['pairs']:,} pairs of {block['users']:,} users"
        f"{between}; longer-is-better {100 * block['longer_is_better']:.1f} %"
    )
