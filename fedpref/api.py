"""The Python door; the command line is a shell over it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpref.config import Recipe
from fedpref.display import Display
from fedpref.folder import RunFolder
from fedpref.plan import Plan, make_plan
from fedpref.recipes import find_recipe, read_recipe
from privacy.report import Report, build_report, render_text

if TYPE_CHECKING:
    from fedpref.client.work import FeatureStore
    from fedpref.data.split import Split
    from reward.head import PublicProjection
    from reward.scorer import RewardModel


@dataclass(frozen=True)
class LoadedRecipe:
    """A validated recipe with its verbs."""

    recipe: Recipe

    def plan(self) -> Plan:
        """What a run would do and cost."""
        return plan(self.recipe)

    def run(self, *, resume: bool = False, display: Display | None = None) -> Run:
        """Run it."""
        return run(self.recipe, resume=resume, display=display)


def load_recipe(path: str | Path, **overrides: Any) -> LoadedRecipe:
    """Read a recipe by path or shipped name; overrides as ``privacy__target_epsilon=4`` or ``**{"privacy.trust": "local"}``."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return LoadedRecipe(read_recipe(find_recipe(str(path)), dotted))


def plan(recipe: Recipe) -> Plan:
    """Noise, epsilon per adversary, bytes, time. No training, no private data, no torch."""
    return make_plan(recipe)


def run(recipe: Recipe, *, resume: bool = False, display: Display | None = None) -> Run:
    """Train, release, report, evaluate; everything lands in ``recipe.output_dir``.

    Raises:
        CodedError, RewardError: coded, with what, why and what to do; the folder stays resumable.
    """
    from fedpref.books import refuse_early
    from fedpref.client.work import FeatureStore
    from fedpref.data.loading import load_federated
    from fedpref.training import TrainingInput, train_reward_head
    from reward.features import FeatureConfig, FeatureExtractor

    show = display or Display()
    the_plan, folder = make_plan(recipe), RunFolder(Path(recipe.output_dir))
    if not resume:
        mechanism = the_plan.mechanism()
        planned = {who: Counter({event: the_plan.num_rounds}) for who, event in mechanism.events().items()}
        refuse_early(the_plan, mechanism.events(), planned)
    folder.begin(recipe, the_plan.digest, resume=resume)
    _write(folder.path / "plan.json", the_plan.to_json_text())
    data = load_federated(recipe, show.say)
    show.say(
        f"{the_plan.recipe.privacy.unit.value} level: {data.num_units(recipe.privacy.unit):,} units in "
        f"{len(data.clients)} clients; {data.split.num_evaluation_users:,} evaluation users held out"
    )
    config = FeatureConfig(
        recipe.model_name_or_path, recipe.reward.layer, recipe.max_length, recipe.reward.pooling, recipe.dtype
    )
    extractor = FeatureExtractor(config, show.say)
    key = json.dumps([asdict(config), extractor.backbone.digest, str(extractor.backbone.model.dtype)])
    store = FeatureStore(extractor, key, folder.node / "features.safetensors")
    projection = fit_projection(recipe, store, show)
    given = TrainingInput(
        the_plan,
        data,
        lambda texts: projection(store(texts, lambda d, n: show.progress("features of private texts", d, n))),
    )
    weight = train_reward_head(given, folder, _trackers(recipe, folder, show), show.say)
    evaluation = _evaluate_split(data.split, recipe, store, projection, weight)
    _finish(folder, the_plan, config, projection, weight, evaluation)
    show.close()
    return Run(folder.path)


def fit_projection(recipe: Recipe, store: FeatureStore, show: Display) -> PublicProjection:
    """Standardisation and projection from the recipe's public text alone, unseen topics left out."""
    from fedpref.data.loading import load_public
    from reward.head import PublicProjection

    public = load_public(recipe.reward.public_data, recipe.evaluation.unseen_topics)
    features = store(public, lambda done, total: show.progress("features of public texts", done, total))
    return PublicProjection.fit(features, recipe.reward.projection_dim)


def _trackers(recipe: Recipe, folder: RunFolder, show: Display) -> list[Any]:
    from fedpref.tracking import JsonlTracker, WandbTracker

    trackers: list[Any] = [JsonlTracker(folder.metrics), show]
    if "wandb" in recipe.report_to:
        trackers.append(WandbTracker(folder.path, folder.path.name, recipe.model_dump(mode="json")))
    return trackers


def _evaluate_split(
    split: Split, recipe: Recipe, store: FeatureStore, projection: PublicProjection, weight: Any
) -> dict[str, Any]:
    from fedpref.evaluation import evaluate
    from reward.scorer import head_scores

    def scores(texts: Any) -> Any:
        return head_scores(projection(store(texts)), weight)

    samples = recipe.evaluation.bootstrap_samples
    return {
        "seen topics": evaluate(split.seen, scores, samples, recipe.seed),
        "unseen topics": evaluate(split.unseen, scores, samples, recipe.seed),
    }


def _finish(  # noqa: PLR0917 - one caller, right above
    folder: RunFolder,
    the_plan: Plan,
    config: Any,
    projection: PublicProjection,
    weight: Any,
    evaluation: dict[str, Any],
) -> None:
    """Release, evaluation, report, manifest; the status says `finished` last."""
    from fedpref.data.spec import find_dataset
    from fedpref.release import write_manifest, write_model_card, write_reward_model

    recipe = the_plan.recipe
    report = build_report(folder.path)
    target = folder.release / "reward"
    write_reward_model(target, config, projection, weight)
    specs = [find_dataset(name) for name in (*recipe.datasets, recipe.reward.public_data)]
    write_model_card(target, the_plan, specs, report, evaluation)
    _write(folder.path / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
    _write(folder.path / "report.json", json.dumps(report.fields, indent=2) + "\n")
    _write(folder.path / "report.txt", render_text(report))
    write_manifest(folder.path, the_plan)
    folder.finish()


def _write(path: Path, text: str) -> None:
    from fedpref.journal import write_durably

    write_durably(path, text.encode())


def _same_files(data: str, datasets: Sequence[str]) -> bool:
    """Is one of the files, by content, one that the run was trained on?"""
    from hashlib import sha256

    from fedpref.data.reading import files_of
    from fedpref.data.spec import find_dataset

    def digests(name: str) -> set[str]:
        return {sha256(path.read_bytes()).hexdigest() for path in files_of(find_dataset(name))}

    return not digests(data).isdisjoint(set().union(*(digests(name) for name in datasets)))


class Run:
    """A run folder: report, evaluation, released reward model."""

    def __init__(self, path: str | Path) -> None:
        """Open a run folder.

        Raises:
            RunFolderError: it is none, or of another version.
        """
        self.folder = RunFolder(Path(path))
        self.status: Mapping[str, Any] = self.folder.status()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.folder.recipe()

    def report(self) -> Report:
        """The privacy report, composed afresh from the ledgers."""
        return build_report(self.path)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The figures that the run computed on its evaluation users."""
        content: dict[str, Any] = json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))
        return content

    def reward_model(self, display: Display | None = None) -> RewardModel:
        """The released reward model."""
        from reward.scorer import RewardModel

        return RewardModel.load(self.folder.release / "reward", (display or Display()).say)

    def evaluate(self, data: str, display: Display | None = None) -> dict[str, Any]:
        """Reward accuracy of the released model on another data set: a file, a YAML, or a shipped name.

        Of the run's own data sets only evaluation users' votes are counted: no figure is ever computed from a training
        user's feedback outside a booked mechanism (guarantees.md rule 18).
        """
        from fedpref.data.preferences import check_records
        from fedpref.data.reading import read_dataset
        from fedpref.data.spec import find_dataset
        from fedpref.data.split import is_evaluation_user
        from fedpref.evaluation import evaluate

        show = display or Display()
        model = self.reward_model(show)
        preferences, problems = check_records(read_dataset(find_dataset(data), need_user=False))
        for problem in problems:
            show.say(problem.describe())
        if _same_files(data, self.recipe.datasets):
            show.say("this is the run's own data: only evaluation users' votes are counted")
            preferences = preferences.select(is_evaluation_user(preferences.user, self.recipe.evaluation))
        return evaluate(
            preferences,
            lambda texts: model.score_conversations(texts, lambda d, n: show.progress("features", d, n)),
            self.recipe.evaluation.bootstrap_samples,
            self.recipe.seed,
        )
