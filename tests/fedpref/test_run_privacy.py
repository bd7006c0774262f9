"""What leaves a run: every field of every message and file is known, and nothing tells texts, people or cohorts."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import fedpref
from fedpref.config import Recipe
from fedpref.errors import TrackerError
from fedpref.plan import make_plan
from fedpref.terminal import LiveDisplay, PlainDisplay
from fedpref.tracking import RELEASED_FIGURES, Trackers
from privacy.report import build_report, verify
from privacy.sealed import Entrusted, LocallyPrivate, size_of
from tests.fedpref.conftest import PLANTED_TEXT, PLANTED_USER, FinishedRun, speak
from tests.tiny import write_recipe

PUBLIC_FILES = {
    "evaluation.json",
    "ledger.head.json",
    "ledger.jsonl",
    "ledger.key",
    "metrics.jsonl",
    "plan.json",
    "recipe.yaml",
    "release/manifest.json",
    "release/reward/README.md",
    "release/reward/reward_config.json",
    "release/reward/reward_head.safetensors",
    "report.json",
    "report.txt",
    "run.json",
}


def outside_nodes(run: Path) -> list[Path]:
    return [p for p in run.rglob("*") if p.is_file() and "nodes" not in p.relative_to(run).parts]


# Messages.


def test_a_sealed_message_has_exactly_the_known_fields() -> None:
    for kind in (Entrusted, LocallyPrivate):
        assert [f.name for f in dataclasses.fields(kind)] == ["client", "round", "value", "l2_bound"]


def test_every_byte_of_every_message_of_a_run_is_a_known_field(finished: FinishedRun) -> None:
    """Magic, version, client, round, dimension, bound; then the vector. Nothing is left over."""
    head = struct.Struct("<4sBIIId")
    assert len(finished.messages) == finished.recipe.federation.num_rounds
    for number, messages in enumerate(finished.messages, 1):
        assert len(messages) == 3
        for client, message in enumerate(messages):
            assert head.unpack_from(message) == (b"FPEN", 1, client, number, 8, 0.5)
            vector = np.frombuffer(message, "<f8", offset=head.size)
            assert vector.shape == (8,)
            assert np.isfinite(vector).all()
            assert len(message) == head.size + 8 * 8 == size_of(8)


# Figures.


def figures_by_hand(run: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Every figure of every round out of what is public or released: the recipe, the books' events, the checkpoints.

    Whoever adds a figure must say here how a stranger could compute it.
    """
    p, federation, rows = recipe.privacy, recipe.federation, []
    momentum, plan = np.zeros(8), make_plan(recipe)
    for number in range(1, federation.num_rounds + 1):
        state = safetensors.numpy.load_file(run / f"checkpoints/round-{number:06d}.safetensors")
        before, momentum = momentum, state["optim.momentum_buffer"]
        mark = next(m for m, _ in plan.epsilon_marks if m >= number)
        rows.append(
            {
                "round": number,
                "num_rounds": federation.num_rounds,
                "expected_cohort": p.sample_rate * federation.num_units,
                "unit": p.unit.value,
                "delta": p.target_delta,
                "noise_std": (p.noise_multiplier or 0) * p.max_grad_norm,
                **({"epsilon_reader": dict(plan.epsilon_marks)[mark]} if p.rng == "os" else {}),
                "pseudo_gradient_norm": float(np.linalg.norm(momentum - 0.9 * before)),
                "parameter_norm": float(np.linalg.norm(state["parameters"])),
            }
        )
    return rows


def test_every_tracked_figure_can_be_computed_from_what_is_public_or_released(finished: FinishedRun) -> None:
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    expected = figures_by_hand(finished.path, finished.recipe)
    assert len(lines) == len(expected) == 6
    for line, row in zip(lines, expected, strict=True):
        assert line.keys() == row.keys()
        for figure, value in row.items():
            assert line[figure] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9)), figure
    assert (
        set(expected[0]) | {"epsilon_reader", "target_epsilon", "next_max_grad_norm", "aggregation_error"}
        == RELEASED_FIGURES
    )  # no target, no adaptive clipping, no adapter here


@pytest.mark.parametrize("figure", ["loss", "cohort_size", "clipped_fraction", "accuracy", "num_examples", "Round"])
def test_a_figure_that_is_not_on_the_list_reaches_no_tracker(figure: str) -> None:
    seen: list[dict[str, Any]] = []

    class Spy:
        def log(self, figures: Any) -> None:
            seen.append(dict(figures))

        def close(self) -> None: ...

    with pytest.raises(TrackerError, match=figure) as caught:
        Trackers([Spy()]).log({"round": 1, figure: 0.5})
    assert caught.value.code == "FP503"
    assert seen == []


# Files.


def test_the_run_folder_has_exactly_the_known_files(finished: FinishedRun) -> None:
    rounds = range(1, finished.recipe.federation.num_rounds + 1)
    expected = PUBLIC_FILES | {f"checkpoints/round-{n:06d}.safetensors" for n in rounds}
    assert {str(p.relative_to(finished.path)) for p in outside_nodes(finished.path)} == expected
    node = {str(p.relative_to(finished.path / "nodes")) for p in (finished.path / "nodes").rglob("*") if p.is_file()}
    books = {"local/ledger.head.json", "local/ledger.jsonl", "local/ledger.key"}
    assert node == {"local/data.json", "local/features.safetensors", *books}


@pytest.mark.parametrize("planted", [PLANTED_TEXT, PLANTED_USER])
def test_no_text_and_no_person_is_in_any_file_or_line_outside_the_node(finished: FinishedRun, planted: str) -> None:
    for path in outside_nodes(finished.path):
        assert planted.lower().encode() not in path.read_bytes().lower(), path
    assert planted.lower() not in (finished.spoken.out + finished.spoken.err).lower()
    for path in (finished.path / "nodes").rglob("*"):  # and even there only features and digests lie, no text
        assert path.is_dir() or planted.lower().encode() not in path.read_bytes().lower()
    votes = finished.path.parent / "votes.jsonl"
    assert planted in votes.read_text(), "the plant is in the data, so the test can fail"


def test_the_display_shows_rounds_and_the_expected_cohort(finished: FinishedRun) -> None:
    assert "round 6/6" in finished.spoken.err
    assert "expected cohort 15" in finished.spoken.err
    assert "features of private texts" in finished.spoken.err


def test_evaluation_figures_say_topics_and_counts_of_evaluation_users_only(finished: FinishedRun) -> None:
    evaluation = json.loads((finished.path / "evaluation.json").read_text())
    assert set(evaluation) == {"seen topics", "unseen topics"}
    assert set(evaluation["seen topics"]["topics"]) <= {"cats", "dogs"}
    figures = {"pairs", "reward_accuracy", "interval", "longer_is_better"}
    for block in evaluation.values():
        assert all(set(topic) == figures for topic in block["topics"].values())


# The realised cohort.


def numbers_in(path: Path) -> list[float]:
    """Every number of a file, in order; of a tensor file the values of every tensor."""
    if path.suffix == ".safetensors":
        import safetensors.numpy

        tensors = safetensors.numpy.load_file(path)
        return [float(x) for name in sorted(tensors) for x in tensors[name].reshape(-1)]
    text = path.read_bytes().decode("utf-8", "replace")
    return [float(x) for x in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", text)]


def holds(numbers: Sequence[float], secret: Sequence[float]) -> bool:
    """True if ``secret`` stands in ``numbers`` at any constant distance (one figure per line of a table)."""
    haystack, needle = np.array(numbers), np.array(secret, dtype=float)
    for stride in range(1, 40):
        width = stride * (len(needle) - 1) + 1
        for start in range(len(haystack) - width + 1):
            if np.array_equal(haystack[start : start + width : stride], needle):
                return True
    return False


def secrets_of(finished: FinishedRun) -> dict[str, list[float]]:
    """The realised sizes themselves, as fractions of what is expected, and running sums."""
    sizes = finished.cohorts
    return {
        "sizes": [float(s) for s in sizes],
        "fraction of the expected": [s / 15 for s in sizes],
        "running sum": np.cumsum(sizes).astype(float).tolist(),
    }


def test_the_realised_cohort_is_in_no_file_and_no_line(finished: FinishedRun, tmp_path: Path) -> None:
    secrets = secrets_of(finished)
    assert len(secrets["sizes"]) == 6
    assert len(set(secrets["sizes"])) > 2
    spoken = tmp_path / "spoken.txt"
    spoken.write_text(finished.spoken.out + finished.spoken.err)
    files = [*outside_nodes(finished.path), finished.path / "nodes/local/ledger.jsonl", spoken]
    everything = [x for path in sorted(files) for x in numbers_in(path)]
    checkpoints = [p for p in sorted(files) if "checkpoints" in p.parts]
    per_round = [x for path in checkpoints for x in numbers_in(path)]
    for secret in secrets.values():
        for path in files:
            assert not holds(numbers_in(path), secret), path
        assert not holds(per_round, secret)
        assert not holds(everything, secret)


def test_the_search_finds_a_cohort_that_is_planted(finished: FinishedRun, tmp_path: Path) -> None:
    """Without this the test above could pass by never finding anything."""
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    for name, secret in secrets_of(finished).items():
        planted = tmp_path / "metrics.jsonl"
        planted.write_text("".join(json.dumps({**a, "x": s}) + "\n" for a, s in zip(lines, secret, strict=True)))
        assert holds(numbers_in(planted), secret), name


def test_the_books_are_the_same_whatever_was_drawn(finished: FinishedRun, tmp_path: Path, tiny_model: Path) -> None:
    """Another seed draws other cohorts: ledger events, plan and public figures do not move."""
    data = finished.path.parent / "votes.yaml"
    recipe = write_recipe(tmp_path, tiny_model, privacy__rng="seeded", datasets=[str(data)], seed=5)
    other = fedpref.load_recipe(recipe).run().path

    def bodies(run: Path) -> list[Any]:
        lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line["body"].items() if k != "run"} for line in lines]

    assert bodies(other) == bodies(finished.path)
    public = ("round", "num_rounds", "expected_cohort", "noise_std")
    ours, theirs = (
        [[json.loads(line)[name] for name in public] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (finished.path, other)
    )
    assert ours == theirs
    plans = [json.loads((run / "plan.json").read_text()) for run in (finished.path, other)]
    assert {k: v for k, v in plans[0].items() if k != "digest"} == {k: v for k, v in plans[1].items() if k != "digest"}


def test_wandb_keeps_figures_offline_under_the_run_and_nothing_private(
    finished: FinishedRun, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    home = tmp_path / "home"
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(home / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = str(finished.path.parent / "votes.yaml")
    recipe = write_recipe(tmp_path, tiny_model, privacy__rng="seeded", datasets=[data], report_to=["wandb"])
    run = fedpref.load_recipe(recipe).run().path
    wandb.teardown()  # waits for wandb's own process, which otherwise writes until this one ends
    files = [p for p in (run / "wandb").rglob("*") if p.is_file() and not p.is_symlink()]
    assert any(p.suffix == ".wandb" for p in files)
    for path in [*files, *(p for p in home.rglob("*") if p.is_file())]:
        content = path.read_bytes().lower()
        assert PLANTED_TEXT.lower().encode() not in content, path
        assert PLANTED_USER.lower().encode() not in content, path
        if path.suffix != ".wandb":
            assert not holds(numbers_in(path), secrets_of(finished)["sizes"]), path
    record = next(p for p in files if p.suffix == ".wandb").read_bytes()
    assert b"pseudo_gradient_norm" in record
    assert b"cohort" not in record.replace(b"expected_cohort", b"")


# Data at rest.


def test_the_nodes_folder_is_its_owners_alone(finished: FinishedRun) -> None:
    for path in (finished.path / "nodes", finished.path / "nodes/local"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_the_sealed_bytes_are_gone_once_the_run_is_finished(finished: FinishedRun) -> None:
    assert not (finished.path / "nodes/local/sealed.bin").exists()


def test_clean_removes_private_data_at_rest_and_keeps_books_and_release(tmp_path: Path, tiny_model: Path) -> None:
    run = fedpref.load_recipe(write_recipe(tmp_path, tiny_model, privacy__rng="seeded")).run().path
    node = run / "nodes/local"
    for name in ("sealed.bin", ".sealed.bin.part", ".features.safetensors.part"):  # as a kill leaves them
        (node / name).write_bytes(b"private")
    kept = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.parent != node}
    spoken = speak("clean", str(run))
    assert spoken.code == 0
    assert sorted(p.name for p in node.iterdir()) == ["data.json", "ledger.head.json", "ledger.jsonl", "ledger.key"]
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.parent != node} == kept
    assert verify(run).ok
    assert build_report(run).summary
    assert speak("clean", str(run)).out.startswith("removed 0 files")


def test_clean_wants_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "nodes/local").mkdir(parents=True)
    precious = tmp_path / "nodes/local/features.safetensors"
    precious.write_bytes(b"another program's")
    spoken = speak("clean", str(tmp_path))
    assert spoken.code == 1
    assert "error[FP501]" in spoken.err
    assert precious.exists()


# Displays.

FIGURES = {
    "round": 3,
    "num_rounds": 10,
    "expected_cohort": 15.0,
    "unit": "user",
    "delta": 1e-5,
    "epsilon_reader": 0.5,
    "noise_std": 0.75,
    "pseudo_gradient_norm": 0.123456,
    "parameter_norm": 7.0,
}


def test_displays_show_the_expected_cohort_and_an_upper_bound_of_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    PlainDisplay().log(FIGURES)
    assert (
        capsys.readouterr().err
        == "round 3/10  expected cohort 15  epsilon (readers) <= 0.500 (unit user, delta 1e-05)\n"
    )
    PlainDisplay().log({**FIGURES, "target_epsilon": 2.0})
    assert "<= 0.500 of 2" in capsys.readouterr().err
    PlainDisplay().log({k: v for k, v in FIGURES.items() if k != "epsilon_reader"})
    assert "no finite epsilon" in capsys.readouterr().err


def test_the_live_table_says_that_the_real_cohort_is_secret() -> None:
    import io

    from rich.console import Console

    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, width=100, force_terminal=True, color_system=None))
    display.say("hello [bold]world")
    display.progress("features", 1, 4)
    display.log(FIGURES)
    display.close()
    display.close()
    shown = screen.getvalue()
    assert "hello [bold]world" in shown
    assert "3/10" in shown
    assert "15 (the real one is secret)" in shown
    assert "<= 0.500" in shown
