"""`fedpref data complete`: public text for the projection, in a form that the recipe's `public_data` accepts."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest

from fedpref.data.loading import load_public
from fedpref.data.spec import find_dataset
from tests.fedpref.conftest import PLANTED_TEXT, FinishedRun, planted_votes, speak
from tests.tiny import write_dataset


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    data = write_dataset(folder, planted_votes())
    spoken = speak(
        "data",
        "complete",
        str(data),
        "--out",
        str(folder / "answers.parquet"),
        "--reason",
        "the prompts were announced before the vote",
        "--model",
        str(tiny_model),
        "--num-generations",
        "4",
        "--max-completion-length",
        "12",
        "--dtype",
        "float32",
    )
    assert spoken.code == 0, spoken.err
    assert f"next: reward.public_data: {folder / 'answers.yaml'}" in spoken.out
    return folder


def test_every_prompt_has_its_completions_and_its_topic(completed: Path) -> None:
    rows = pyarrow.parquet.read_table(completed / "answers.parquet").to_pylist()
    assert len(rows) == 3 * 4
    prompts = [row["prompt"][0]["content"] for row in rows]
    assert len(set(prompts)) == 3
    assert {(p, row["topic"]) for p, row in zip(prompts, rows, strict=True)} == {
        (f"Say something about {topic}.", topic) for topic in ("cats", "dogs", "birds")
    }
    assert all(row["completion"][0]["role"] == "assistant" for row in rows)


def test_the_description_is_found_and_its_text_is_public(completed: Path) -> None:
    spec = find_dataset(str(completed / "answers.yaml"))
    assert spec.public
    assert spec.format == "prompt_completion"
    assert spec.reason == "the prompts were announced before the vote"
    assert len(load_public(str(completed / "answers.yaml"), ())) == 12
    assert len(load_public(str(completed / "answers.yaml"), ("birds",))) == 8


def test_no_answer_that_a_person_voted_on_is_in_it(completed: Path) -> None:
    assert PLANTED_TEXT in (completed / "votes.jsonl").read_text()
    table = pyarrow.parquet.read_table(completed / "answers.parquet")
    assert PLANTED_TEXT not in str(table.to_pylist())
    assert PLANTED_TEXT not in (completed / "answers.yaml").read_text()
    assert set(table.column_names) == {"prompt", "completion", "topic"}


def test_nothing_is_written_over(completed: Path, tiny_model: Path) -> None:
    before = (completed / "answers.parquet").read_bytes()
    out, data = str(completed / "answers.parquet"), str(completed / "votes.yaml")
    spoken = speak("data", "complete", data, "--out", out, "--reason", "r", "--model", str(tiny_model))
    assert spoken.code == 1
    assert "answers.parquet is there already." in spoken.err
    assert (completed / "answers.parquet").read_bytes() == before


@pytest.mark.parametrize("file", ["x.parquet", "x.yaml"])
def test_a_full_disk_is_coded_and_leaves_no_half_file(
    completed: Path, tiny_model: Path, tmp_path: Path, file: str
) -> None:
    scratch = tmp_path / f".{file}.part"
    scratch.symlink_to("/dev/full")
    out, data, options = str(tmp_path / "x.parquet"), str(completed / "votes.yaml"), ("--num-generations", "1")
    short = ("--max-completion-length", "9", "--dtype", "float32", "--model", str(tiny_model), "--reason", "r")
    spoken = speak("data", "complete", data, "--out", out, *options, *short)
    assert spoken.code == 1
    assert f"error[FP502] {file} could not be written." in spoken.err
    assert not (tmp_path / file).exists()


def test_a_model_that_is_not_there_is_coded_and_writes_nothing(finished: FinishedRun, tmp_path: Path) -> None:
    data = finished.path.parent / "votes.yaml"
    spoken = speak(
        "data", "complete", str(data), "--out", str(tmp_path / "x.parquet"), "--reason", "r", "--model", str(tmp_path)
    )
    assert spoken.code == 1
    assert "error[FP301]" in spoken.err
    assert list(tmp_path.iterdir()) == []
