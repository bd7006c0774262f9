"""`fedpref data check | show | map | ls`: right figures, for the holder's eyes only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpref.cli import data as verbs
from fedpref.data.check import advice, check_dataset
from fedpref.data.describe import topic_lines
from fedpref.data.digests import content_digests, file_digest, spec_digests
from fedpref.data.mapping import describe_file
from fedpref.data.preferences import check_records
from fedpref.data.reading import read_dataset
from fedpref.data.spec import DatasetSpec, find_dataset, list_datasets
from fedpref.errors import DatasetError
from tests.fedpref.conftest import PLANTED_TEXT, PLANTED_USER, planted_votes, speak
from tests.fedpref.test_reading import WRITERS
from tests.tiny import make_recipe, write_jsonl


def messy_votes(seed: int) -> list[dict[str, Any]]:
    """Few texts and people, so that ties, duplicates, contradictions and blanks are frequent."""
    rng = np.random.default_rng(seed)
    text = ["a", "b", "c", " ", "dd"]
    return [
        {
            "prompt": ["q", "r", " "][int(rng.choice(3, p=[0.6, 0.35, 0.05]))],
            "chosen": text[int(rng.integers(5))],
            "rejected": text[int(rng.integers(5))],
            "user_id": f"u{rng.integers(12)}",
            "topic": f"t{rng.integers(3)}",
        }
        for _ in range(300)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_figures_are_those_of_the_records_that_training_keeps(tmp_path: Path, seed: int) -> None:
    spec = find_dataset(str(write_jsonl(tmp_path / "d.jsonl", messy_votes(seed))))
    found = check_dataset(spec).figures
    kept, problems = check_records(read_dataset(spec, need_user=True))
    counts = {problem.code: len(problem.rows) for problem in problems}
    assert found["usable_pairs"] == len(kept)
    assert [found[key] for key in ("blank", "ties", "duplicates", "contradictions")] == [
        counts[code] for code in ("FP211", "FP212", "FP213", "FP214")
    ]
    per_user = [int((kept.user == f"u{i}").sum()) for i in range(12)]
    assert found["users"] == 12
    assert found["users_without_usable_pairs"] == per_user.count(0)
    assert found["pairs_per_user"]["max"] == max(per_user)
    assert found["pairs_per_user"]["median"] == np.median(per_user)
    lengths = [len(text.completion) for text in kept.texts]
    longer = np.mean([lengths[c] > lengths[r] for c, r in zip(kept.chosen, kept.rejected, strict=True)])
    assert found["chosen_is_longer"] == pytest.approx(longer, abs=1e-4)


def test_the_advice_counts_people_and_pairs_and_says_that_it_looked() -> None:
    found = advice(np.array([1] * 9 + [1000]))
    assert found["suggested"] == 5
    assert found["data_dependent"] is True
    assert found["users_whole"]["5"] == 0.9
    assert found["pairs_kept"]["100"] == round(109 / 1009, 4)


def test_neither_texts_nor_people_nor_topics_leave_by_a_pipe(tmp_path: Path) -> None:
    rows = [{**row, "topic": f"{PLANTED_TEXT} {row['topic']}"} for row in planted_votes()]
    path = str(write_jsonl(tmp_path / "d.jsonl", rows))
    for arguments in (("check", path), ("show", path), ("check", path, "--json"), ("show", path, "--json")):
        spoken = speak("data", *arguments)
        assert spoken.code == 0, spoken.err
        assert PLANTED_TEXT not in spoken.out + spoken.err
        assert PLANTED_USER not in spoken.out + spoken.err
    assert json.loads(speak("data", "check", path, "--json").out)["local_only"] is True
    assert {p.name for p in tmp_path.iterdir()} == {"d.jsonl"}


def test_on_a_terminal_three_rows_are_rendered_without_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "chosen": f"{PLANTED_TEXT}\x1b[2J\nnext", "topic": "a topic"} for row in planted_votes()]
    path = str(write_jsonl(tmp_path / "d.jsonl", rows))
    (tmp_path / "d.yaml").write_text(f"{{name: d, source: {path}, license: x, fields: {{topic: topic}}}}")
    monkeypatch.setattr(verbs, "_may_print", lambda public: True)
    out = speak("data", "check", str(tmp_path / "d.yaml")).out
    assert out.count("row ") == 3
    assert f"{PLANTED_TEXT}\\x1b[2J\\nnext" in out
    assert "\x1b" not in out
    assert "topic 'a topic'" in out
    assert speak("data", "show", path, "-n", "2").out.count("\nrow ") == 2


def test_many_topics_are_cut() -> None:
    spec = DatasetSpec(name="d", source="d", license="x")
    from fedpref.data.check import Check

    lines = list(topic_lines(Check(spec, {}, {f"t{i}": 1 for i in range(40)})))
    assert len(lines) == 31
    assert "10 more" in lines[-1]


def test_public_prompts_are_shown_anywhere_and_answers_counted() -> None:
    out = speak("data", "check", "svamp_test").out
    assert "219 rows" in out
    assert "answers: 219 given" in out
    assert "u: Danny collects bottle caps" in out
    assert "holder only" not in out
    shown = json.loads(speak("data", "show", "svamp_test", "-n", "1", "--json").out)
    assert shown["columns"] == {"prompt": "question", "topic": "operation", "answer": "answer"}
    assert shown["rows"][0]["answer"] == "16"


def test_a_description_without_its_data_is_shown_and_not_checked() -> None:
    assert "your file: NAME@FILE" in speak("data", "show", "wmt_mqm").out
    spoken = speak("data", "check", "wmt_mqm")
    assert spoken.code == 1
    assert "wmt_mqm@FILE" in spoken.err


def test_ls_as_json_names_everything() -> None:
    listed = json.loads(speak("data", "ls", "--json").out)
    assert [row["name"] for row in listed["datasets"]] == list_datasets()
    assert all(row["license"] for row in listed["datasets"])


MAPPINGS: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", {"prompt": "prompt"}),
    ({"chosen": "q a", "rejected": "q b"}, "preference", {"prompt": None}),
    (
        {"Question": "q", "better": "a", "worse": "b", "Worker ID": 3, "margin": 0.1},
        "preference",
        {"user_id": "Worker ID"},
    ),
    (
        {"instruction": "q", "response": "a", "thumbs_up": True, "user": "u"},
        "unpaired_preference",
        {"label": "thumbs_up"},
    ),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}, "ranked", {"ratings": "scores"}),
    ({"prompt": "q", "output": "a", "stars": 4, "rater": "u"}, "rated", {"rating": "stars"}),
    ({"prompt": "q", "completion": "a"}, "prompt_completion", {"completion": "completion"}),
    ({"question": "q", "answer": "4", "domain": "sum"}, "prompt_only", {"answer": "answer", "topic": "domain"}),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "client_id": None}, "preference", {}),
]


@pytest.mark.parametrize(
    ("row", "shape", "fields"), MAPPINGS, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_map_is_used_at_once(tmp_path: Path, suffix: str, row: dict[str, Any], shape: str, fields: Any) -> None:
    if suffix == ".csv" and any(isinstance(value, list) for value in row.values()):
        pytest.skip("a CSV file has no lists")
    path = WRITERS[suffix](tmp_path / f"d{suffix}", [row] * 3)
    out = tmp_path / "sub" / "d.yaml"
    out.parent.mkdir()
    spoken = speak("data", "map", str(path), "-o", str(out))
    assert spoken.code == 0, spoken.err
    tree = yaml.safe_load(out.read_text())
    assert tree["format"] == shape
    assert tree["source"] == f"../d{suffix}"
    assert fields.items() <= tree["fields"].items()
    assert None not in {column for field, column in tree["fields"].items() if field != "prompt"}
    assert "client_id" not in tree["fields"].values()
    assert speak("data", "check", str(out)).code == 0
    again = speak("data", "map", str(path), "-o", str(out))
    assert again.code == 1
    assert "exists" in again.err


def test_what_a_user_says_goes_before_the_guess(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"frage": "q", "gut": "a", "schlecht": "b", "prompt": "no"}])
    with pytest.raises(DatasetError, match="chosen=nowhere fits nothing"):
        describe_file(path, {"chosen": "nowhere"})
    spec, unread = describe_file(path, {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"})
    assert spec.fields.model_dump(exclude_unset=True) == {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}
    assert unread == ["prompt"]
    assert "next:" in speak("data", "map", str(path), "--field", "prompt=frage").err
    assert "FIELD=COLUMN" in speak("data", "map", str(path), "--field", "prompt").err


def test_columns_that_fit_nothing_are_coded(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"x": 1, "y": 2}])
    with pytest.raises(DatasetError, match="no format fits"):
        describe_file(path, {})


def test_digests_name_descriptions_and_public_files_only(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    found = spec_digests(recipe, "svamp_train")
    private, public = recipe.datasets[0], recipe.reward.public_data
    assert set(found) == {private, public, "svamp_train"}
    assert found[private]["description"] == file_digest(Path(private))
    assert "data" not in found[private]
    assert found[public]["data"] == [file_digest(tmp_path / "public.jsonl")]
    assert found["svamp_train"]["data"] == [find_dataset("svamp_train").sha256]
    assert content_digests(find_dataset("gsm8k")) == {f"hub/openai/gsm8k@{find_dataset('gsm8k').revision}/main/train"}


def test_a_file_without_a_description_is_digested_by_what_it_is_taken_for(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    (tmp_path / "x").mkdir()
    one, other = (find_dataset(str(write_jsonl(tmp_path / place / "d.jsonl", rows))) for place in (".", "x"))
    assert len(one.digest) == 64
    assert one.digest == other.digest
