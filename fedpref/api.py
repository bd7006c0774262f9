"""The Python door; the command line is a shell over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpref.config import Recipe
from fedpref.data.spec import find_dataset
from fedpref.display import Display
from fedpref.errors import RunFolderError
from fedpref.folder import RunFolder
from fedpref.journal import write_durably
from fedpref.manifest import reward_layout
from fedpref.plan import Plan, make_plan
from fedpref.recipes import find_recipe, read_recipe
from fedpref.terminal import make_display
from fedpref.tracking import open_trackers
from privacy.report import Report, build_report, render_text

if TYPE_CHECKING:
    from fedpref.client.work import FeatureStore
    from fedpref.data.loading import FederatedData
    from fedpref.data.split import Split
    from policy.registry import ObjectiveSpec
    from policy.rewards import RewardFunc
    from reward.features import FeatureConfig
    from reward.head import PublicProjection
    from reward.scorer import RewardModel, Scorer


@dataclass(frozen=True)
class LoadedRecipe:
    """A validated recipe with its verbs."""

    recipe: Recipe

    def plan(self) -> Plan:
        """What a run would do and cost."""
        return plan(self.recipe)

    def run(
        self,
        *,
        resume: bool = False,
        display: Display | None = None,
        reward_funcs: Mapping[str, RewardFunc] | None = None,
    ) -> Run:
        """Run it; see ``run``. Without a ``display`` progress goes to stderr; ``fedpref.Display()`` says nothing."""
        if display is not None:
            return run(self.recipe, resume=resume, display=display, reward_funcs=reward_funcs)
        with closing(make_display()) as shown:
            return run(self.recipe, resume=resume, display=shown, reward_funcs=reward_funcs)


def load_recipe(
    path: str | Path, *, objectives: Mapping[str, ObjectiveSpec] | None = None, **overrides: Any
) -> LoadedRecipe:
    """Read a recipe by path or shipped name; overrides as ``privacy__target_epsilon=4`` or ``**{"privacy.trust": "local"}``.

    Args:
        objectives: own ones that ``training.objective`` may name, beside those of this version and installed packages;
            tried on made-up records before a run books anything (``fedpref.objective_check``).
    """
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return LoadedRecipe(read_recipe(find_recipe(str(path)), dotted, objectives))


def plan(recipe: Recipe) -> Plan:
    """Noise, epsilon per adversary, bytes, time. No training, no private data, no torch."""
    return make_plan(recipe)


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    display: Display | None = None,
    reward_funcs: Mapping[str, RewardFunc] | None = None,
) -> Run:
    """Train, release, report, evaluate; everything lands in ``recipe.output_dir``. The display stays open: it is yours.

    Args:
        reward_funcs: functions with TRL's signature that ``policy.reward_funcs`` may name beside those that it finds
            itself; only prompts, completions and columns of public prompts ever reach them.

    Raises:
        CodedError, RewardError: coded, with what, why and what to do; the folder stays resumable.
    """
    from fedpref.adapter_stage import run_adapter_stage
    from fedpref.books import refuse_early
    from fedpref.data.loading import load_federated
    from fedpref.policy_stage import check_policy
    from fedpref.release import write_manifest
    from fedpref.training_feedback import check_data_unchanged, keep_data_digests

    show = display or Display()
    the_plan, folder = make_plan(recipe), RunFolder(Path(recipe.output_dir))
    check_policy(recipe, reward_funcs or {})
    if not resume:
        mechanism = the_plan.mechanism()
        refuse_early(the_plan, mechanism.events(), the_plan.composition())
    folder.begin(recipe, the_plan.digest, resume=resume)
    _write(folder.path / "plan.json", the_plan.to_json_text())
    keep_data_digests(recipe, folder.node, begun=folder.has_books())
    data = load_federated(recipe, show.say)
    check_data_unchanged(recipe, folder.node)  # nor while they were read
    show.say(
        f"{the_plan.recipe.privacy.unit.value} level: {data.num_units(recipe.privacy.unit):,} units in "
        f"{len(data.clients)} clients; {'' if recipe.evaluation.federated else f'{data.split.num_evaluation_users:,} '}"
        "evaluation users held out"
    )
    if recipe.training is not None:
        run_adapter_stage(the_plan, folder, data, show, reward_funcs)
    else:
        _run_reward_stage(the_plan, folder, data, reward_funcs or {}, show)
    write_manifest(folder.path, the_plan)
    folder.finish()
    return Run(folder.path, objectives=recipe.objectives)


def _run_reward_stage(
    the_plan: Plan, folder: RunFolder, data: FederatedData, reward_funcs: Mapping[str, RewardFunc], show: Display
) -> None:
    """Features, the reward head, its release, and the policy loop if the recipe has one."""
    from fedpref.client.work import FeatureStore
    from fedpref.consent import ask_for_figures
    from fedpref.data.renderable import only_renderable
    from fedpref.evaluation_stage import EvaluationInput, evaluation_clients, run_federated_evaluation
    from fedpref.policy_stage import run_policy_stage
    from fedpref.training import TrainingInput, train_reward_head
    from reward.features import FeatureExtractor
    from reward.scorer import RewardModel

    recipe = the_plan.recipe
    config = feature_config(recipe)
    extractor = FeatureExtractor(config, show.say)
    data = only_renderable(data, extractor.backbone.tokenizer, show.say)
    held_out = evaluation_clients(data, recipe.federation.partition) if recipe.evaluation.federated else None
    key = json.dumps([config.to_json(), extractor.backbone.digest, str(extractor.backbone.model.dtype)])
    store = FeatureStore(extractor, key, folder.node / "features.safetensors")
    projection = fit_projection(recipe, store, show)
    given = TrainingInput(
        the_plan,
        data,
        lambda texts: projection(store(texts, _without_counts(show, "features of private texts"))),
    )
    with open_trackers(recipe.report_to, folder.path, folder.metrics, recipe.model_dump(mode="json")) as trackers:
        weight = train_reward_head(given, folder, [*trackers, show], show.say)
    scores = _scores_of(
        weight,
        recipe,
        lambda texts: projection(store(texts, _without_counts(show, "features of evaluation users' texts"))),
    )
    split = data.split
    if held_out is None:
        split = ask_for_figures(recipe, the_plan.digest, data, folder.node, show.say).split
        evaluation = _evaluate_split(split, recipe, scores)
    else:
        evaluation = run_federated_evaluation(
            EvaluationInput(the_plan, data, held_out, weight, scores), folder, show.say
        )
    model = RewardModel(extractor, projection, weight.astype(np.float32), reward_layout(recipe.head))
    _release(folder, the_plan, model, evaluation)
    run_policy_stage(the_plan, folder, model, split=split, reward_funcs=reward_funcs, show=show)


def _without_counts(show: Display, what: str) -> Callable[[int, int], None]:
    """Progress in percent: how many texts people wrote is no public number (guarantees.md rule 8)."""
    return lambda done, total: show.progress(f"{what}, percent", 100 * done // max(total, 1), 100)


def feature_config(recipe: Recipe) -> FeatureConfig:
    """The frozen features that a recipe asks for."""
    from reward.features import FeatureConfig

    r = recipe.head
    return FeatureConfig(recipe.model_name_or_path, r.layer, recipe.max_length, r.pooling, recipe.dtype, r.layers)


def fit_projection(recipe: Recipe, store: FeatureStore, show: Display) -> PublicProjection:
    """Standardisation and projection from the recipe's public text alone, unseen topics left out."""
    from fedpref.data.loading import load_public
    from reward.head import PublicProjection

    public = load_public(recipe.head.public_data, recipe.evaluation.unseen_topics)
    features = store(public, lambda done, total: show.progress("features of public texts", done, total))
    return PublicProjection.fit(features, recipe.head.projection_dim)


def _scores_of(weight: Any, recipe: Recipe, features: Callable[[Any], Any]) -> Callable[[Any], Any]:
    from reward.scorer import head_scores

    layout = reward_layout(recipe.head)
    return lambda texts: head_scores(features(texts), weight, layout)


def _evaluate_split(split: Split, recipe: Recipe, scores: Callable[[Any], Any]) -> dict[str, Any]:
    from fedpref.evaluation import evaluate

    samples = recipe.evaluation.bootstrap_samples
    return {
        "seen topics": evaluate(split.seen, scores, samples, recipe.seed),
        "unseen topics": evaluate(split.unseen, scores, samples, recipe.seed),
    }


def _release(folder: RunFolder, the_plan: Plan, model: RewardModel, evaluation: dict[str, Any]) -> None:
    """Reward model, card, evaluation and report."""
    from fedpref.release import write_model_card, write_reward_model

    recipe = the_plan.recipe
    report = build_report(folder.path)
    target = folder.release / "reward"
    write_reward_model(target, model)
    specs = [find_dataset(name) for name in (*recipe.datasets, recipe.head.public_data)]
    write_model_card(target, the_plan, specs, report, evaluation)
    _write(folder.path / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
    _write(folder.path / "report.json", json.dumps(report.fields, indent=2) + "\n")
    _write(folder.path / "report.txt", render_text(report))


def _write(path: Path, text: str) -> None:
    write_durably(path, text.encode())


class Run:
    """A run folder: report, evaluation, released reward model."""

    def __init__(self, path: str | Path, *, objectives: Mapping[str, ObjectiveSpec] | None = None) -> None:
        """Open a run folder; ``objectives`` as given to ``load_recipe``.

        Raises:
            RunFolderError: it is none, or of another version.
        """
        self.folder, self._objectives = RunFolder(Path(path)), objectives
        self.status: Mapping[str, Any] = self.folder.status()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.folder.recipe(self._objectives)

    def report(self) -> Report:
        """The privacy report, composed afresh from the ledgers."""
        return build_report(self.path)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The figures that the run computed on its evaluation users.

        Raises:
            RunFolderError: none yet.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise RunFolderError(
                f"{self.path}: has no evaluation.",
                f"The run is {self.status['status']}; figures come last.",
                f"Finish it first: fedpref run {self.folder.recipe_file} --resume",
            ) from None
        return content

    @property
    def policy_evaluation(self) -> dict[str, Any]:
        """The policy beside its base model, by group of prompts; empty for a run without a policy."""
        path = self.path / "policy_evaluation.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return content

    @property
    def samples(self) -> list[dict[str, str]]:
        """One completion of the base model and of the policy per prompt; empty for a run without a policy."""
        path = self.path / "samples.json"
        content: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return content

    def reward_model(self, display: Display | None = None) -> Scorer:
        """The released reward model.

        Raises:
            RunFolderError: the run trained a language model, which scores nothing.
        """
        import reward

        training = self.recipe.training
        if training is not None and not training.spec.score:
            raise RunFolderError(
                f"{self.path}: has no reward model.",
                f"Its clients trained an adapter of the language model by {training.objective}; the figures on evaluation "
                "users' records are in evaluation.json.",
                "Load release/policy with PeftModel.from_pretrained; a reward model comes from the block `reward`, or from "
                "training.objective: bradley_terry.",
            )
        return reward.load(self.folder.release / "reward", (display or Display()).say)

    def _counts_evaluation_users(self) -> bool:
        """May some of the run's own people be counted?"""
        return not self.recipe.evaluation.federated and self.recipe.federation.terms is None

    def evaluate(self, data: str, display: Display | None = None) -> dict[str, Any]:
        """Reward accuracy of the released model on another data set: a file, a YAML, or a shipped name.

        Of the people of the run only evaluation users' votes are counted, if their client's terms allow it, and nobody's under
        `evaluation.federated`: no figure is ever computed from a protected person's feedback outside a booked mechanism
        (guarantees.md rule 18). See ``without_training_feedback`` for how, and its limit.

        Raises:
            CodedError: the data, the run's own data sets or its clients' terms cannot be read: then nobody can tell who is
                who.
        """
        from fedpref.consent import ask_for_figures
        from fedpref.data.formats import require
        from fedpref.data.preferences import check_records
        from fedpref.data.reading import read_dataset
        from fedpref.evaluation import evaluate
        from fedpref.training_feedback import check_data_unchanged, load_all_feedback, without_training_feedback

        check_data_unchanged(self.recipe, self.folder.node)
        show = display or Display()
        model = self.reward_model(show)
        require(find_dataset(data), "pairs", training=False)
        preferences, problems = check_records(read_dataset(find_dataset(data), need_user=False))
        for problem in problems:
            show.say(problem.describe())
        own = load_all_feedback(self.recipe)
        consent = ask_for_figures(self.recipe, self.status["plan_digest"], own, self.folder.node, show.say)
        preferences, left_out = without_training_feedback(preferences, own, consent.withheld, consent.people)
        if left_out:
            whose = "training users" if self._counts_evaluation_users() else "people"
            show.say(f"{left_out:,} votes of the run's own {whose} are left out")
        return evaluate(
            preferences,
            lambda texts: model.score_conversations(texts, lambda d, n: show.progress("scores", d, n)),
            self.recipe.evaluation.bootstrap_samples,
            self.recipe.seed,
        )
