"""Learned representations on a frozen trunk: hidden layer, layer mix, any width; the same scores after a release."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch

import reward
from reward.errors import PublicDataError, RewardModelError
from reward.features import FeatureConfig, FeatureExtractor
from reward.head import PublicProjection, RewardHead, set_weight
from reward.layout import HeadLayout
from reward.pairs import Conversation
from reward.scorer import CONFIG, FORMAT, LEARNED_FORMAT, WEIGHTS, RewardModel, head_scores, reward_model_files

Array = npt.NDArray[np.float64]
TEXTS = [Conversation((("user", f"q{i % 3}"),), f"answer {i} {'!' * (i % 5)}") for i in range(40)]
LAYOUTS = {
    "head": HeadLayout(6),
    "mlp_head": HeadLayout(6, 4),
    "mixed layers": HeadLayout(6, None, 2),
    "mlp_head on mixed layers": HeadLayout(6, 4, 2),
    "full width": HeadLayout(32, None, 2),
    "mlp_head at full width": HeadLayout(32, 3),
}


def oracle(layout: HeadLayout, weight: Array, x: Array) -> Array:
    """The docstring of ``RewardHead``, record by record."""
    t = layout.split(weight)
    scores = []
    for row in x:
        v = row
        if layout.num_layers:
            a = np.exp(t["mix.weight"][:, 0])
            v = sum(a[j] / a.sum() * row[j] for j in range(layout.num_layers))
        if layout.hidden_dim:
            v = np.tanh(t["hidden.weight"] @ v + t["hidden.bias"]) / np.sqrt(layout.hidden_dim)
        scores.append(float(t["score.weight"][0] @ v))
    return np.array(scores)


def features_for(layout: HeadLayout, n: int = 7) -> npt.NDArray[np.float32]:
    shape = (n, layout.num_layers, layout.dimension) if layout.num_layers else (n, layout.dimension)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_scores_are_those_of_the_formula(layout: HeadLayout) -> None:
    weight, x = np.random.default_rng(0).normal(size=layout.size), features_for(layout)
    np.testing.assert_allclose(head_scores(x, weight, layout), oracle(layout, weight, x.astype(np.float64)), rtol=1e-12)
    assert head_scores(x[:0], weight, layout).shape == (0,)
    assert layout.size == sum(p.numel() for p in RewardHead.of(layout.shapes).parameters())
    with pytest.raises(ValueError, match=r"numbers for a head|mismatch"):
        head_scores(x, weight[1:], layout)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_is_the_modules_own_and_is_found_again_by_its_shapes(layout: HeadLayout) -> None:
    head = RewardHead.of(layout.shapes)
    assert [(name, tuple(p.shape)) for name, p in head.named_parameters()] == list(layout.shapes)
    assert HeadLayout.of(layout.shapes) == layout == head.layout
    weight = np.arange(layout.size, dtype=np.float64)
    set_weight(head, weight)
    flat = torch.cat([p.detach().reshape(-1) for p in head.parameters()])
    assert flat.tolist() == weight.tolist()


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [("score.weight", (6,))],
        [("score.weight", (1, 6)), ("hidden.bias", (4,))],
        [("hidden.weight", (4, 6)), ("hidden.bias", (3,)), ("score.weight", (1, 4))],
        [("mix.weight", ()), ("score.weight", (1, 6))],
        [("lora_A", (2, 2)), ("score.weight", (1, 6))],
    ],
)
def test_other_tensors_are_no_head(shapes: list[tuple[str, tuple[int, ...]]]) -> None:
    with pytest.raises(ValueError, match="no head has the tensors"):
        HeadLayout.of(shapes)


def test_initial_values_are_fixed_by_the_seed_and_score_nothing() -> None:
    layout = HeadLayout(6, 4, 2)
    assert np.array_equal(layout.initial(3), layout.initial(3))
    assert not np.array_equal(layout.initial(3), layout.initial(4))
    assert not HeadLayout(6, None, 2).initial(3).any()
    assert (head_scores(features_for(layout), layout.initial(3), layout) == 0).all()
    parts = layout.split(layout.initial(3))
    assert (
        len({tuple(row) for row in parts["hidden.weight"]}) == 4
    )  # units differ, or they would stay the same for ever


def test_swapping_the_answers_swaps_the_sign_of_the_margin() -> None:
    layout = HeadLayout(6, 4, 2)
    weight, x = np.random.default_rng(0).normal(size=layout.size), features_for(layout)
    scores = head_scores(x, weight, layout)
    assert (scores[:3] - scores[3:6]).tolist() == (-(scores[3:6] - scores[:3])).tolist()


# Features of several layers.


def test_features_of_several_layers_are_those_of_each_alone_bit_for_bit(tiny_model: Path) -> None:
    both = FeatureExtractor(FeatureConfig(str(tiny_model), 2, 64, dtype="float32", layers=(1, 2)))
    features = both(TEXTS[:5])
    assert features.shape == (5, 2, 32)
    for i in (0, 1):
        alone = FeatureExtractor(FeatureConfig(str(tiny_model), i + 1, 64, dtype="float32"))
        assert np.array_equal(features[:, i], alone(TEXTS[:5]))
    assert both([]).shape == (0, *both.shape) == (0, 2, 32)


@pytest.mark.parametrize("layers", [(), (0, 2), (2, 1), (1, 1), (1,)])
def test_layers_that_do_not_rise_to_the_last_one_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not rise"):
        FeatureConfig("m", 2, 64, layers=layers)


def test_a_config_of_one_layer_is_stored_as_it_always_was() -> None:
    config = FeatureConfig("m", 2, 64)
    assert list(config.to_json()) == ["model_name_or_path", "layer", "max_length", "pooling", "dtype"]
    several = FeatureConfig("m", 2, 64, layers=(1, 2))
    assert FeatureConfig(**json.loads(json.dumps(several.to_json()))) == several


# Projection.


def test_each_layer_is_standardised_by_itself_along_shared_directions() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 1, 8)) @ rng.normal(size=(8, 8))
    public = (np.concatenate([base, 100 * base + 7], axis=1)).astype(np.float32)  # the same up to place and scale
    projection = PublicProjection.fit(public, 3)
    projected = projection(public)
    assert projected.shape == (60, 2, 3)
    assert projection.components.shape == (8, 3)
    np.testing.assert_allclose(projected[:, 0], projected[:, 1], atol=1e-4)
    assert np.square(projected.mean(axis=1)).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-3)
    one = PublicProjection.fit(public[:, 0], 3)(public[:, 0])
    np.testing.assert_allclose(np.abs(projected[:, 0]), np.abs(one), atol=1e-3)


@pytest.mark.parametrize("layers", [None, 2])
def test_the_full_width_leaves_nothing_out(layers: int | None) -> None:
    shape = (31, 20) if layers is None else (31, layers, 20)
    public = np.random.default_rng(0).normal(3, 5, size=shape).astype(np.float32)
    projection = PublicProjection.fit(public, 20)
    standard = (public - public.mean(0)) / public.std(0)
    ratio = projection(public) / standard
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-3)
    mixed = projection(public) if layers is None else projection(public).mean(axis=1)
    assert np.square(mixed).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(PublicDataError):
        PublicProjection.fit(public[:29], 20)
    with pytest.raises(PublicDataError):
        PublicProjection.fit(public, 19)


def test_a_public_text_with_one_broken_layer_is_left_out() -> None:
    public = np.random.default_rng(0).normal(size=(40, 2, 8)).astype(np.float32)
    broken = public.copy()
    broken[3, 1, 2] = np.nan
    kept = np.delete(public, 3, axis=0)
    assert np.array_equal(PublicProjection.fit(broken, 3).components, PublicProjection.fit(kept, 3).components)


# Release.


def save(folder: Path, model: Path, layout: HeadLayout) -> tuple[FeatureConfig, PublicProjection, Array]:
    layers = tuple(range(1, layout.num_layers + 1)) if layout.num_layers else None
    config = FeatureConfig(str(model), 2, 64, dtype="float32", layers=layers)
    projection = PublicProjection.fit(FeatureExtractor(config)(TEXTS), layout.dimension)
    weight = np.random.default_rng(0).normal(size=layout.size)
    folder.mkdir(exist_ok=True)
    for name, content in reward_model_files(config, projection, weight, layout).items():
        (folder / name).write_bytes(content)
    return config, projection, weight


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_loaded_model_scores_as_the_parts_that_were_saved(
    tmp_path: Path, tiny_model: Path, layout: HeadLayout
) -> None:
    config, projection, weight = save(tmp_path / "m", tiny_model, layout)
    expected = oracle(
        layout,
        weight.astype(np.float32).astype(np.float64),
        projection(FeatureExtractor(config)(TEXTS[:4])).astype(np.float64),
    )
    model = reward.load(tmp_path / "m")
    scores = model(prompts=[dict(c.prompt)["user"] for c in TEXTS[:4]], completions=[c.completion for c in TEXTS[:4]])
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert len(set(scores)) == 4
    stored = json.loads((tmp_path / "m" / CONFIG).read_text())
    assert stored["format"] == (FORMAT if layout == HeadLayout(layout.dimension) else LEARNED_FORMAT)


@pytest.mark.parametrize("damage", ["format", "layers", "hidden.bias", "mix.weight", "mean", "extra", "components"])
def test_parts_of_different_models_are_refused(tmp_path: Path, tiny_model: Path, damage: str) -> None:
    save(tmp_path / "m", tiny_model, LAYOUTS["mlp_head on mixed layers"])
    config, path = json.loads((tmp_path / "m" / CONFIG).read_text()), tmp_path / "m" / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    if damage == "format":
        config["format"] = FORMAT
    elif damage == "layers":
        del config["features"]["layers"]
    elif damage == "extra":
        tensors["other"] = np.zeros(1, np.float32)
    else:
        tensors[damage] = tensors[damage][:1]
    (tmp_path / "m" / CONFIG).write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(RewardModelError) as caught:
        RewardModel.load(tmp_path / "m")
    assert caught.value.code == "FP303"
