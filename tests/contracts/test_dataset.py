"""Every file format gives the same data set; whatever reads data for a recipe must hold to this."""

from __future__ import annotations

import csv
import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from fedpref.data.preferences import check_records
from fedpref.data.reading import read_dataset
from fedpref.data.spec import find_dataset
from fedpref.errors import BrokenFileError, DatasetError, DigestError, MissingUserError
from tests.tiny import votes, write_jsonl

COLUMNS = {"prompt", "chosen", "rejected", "user_id", "topic", "client"}
HARD = [
    {"prompt": "Où? 🙂", "chosen": "line one\nline two", "rejected": 'say "no", twice', "user_id": "007", "topic": "1"},
    {"prompt": "a,b;c\td", "chosen": "null", "rejected": "NaN", "user_id": "7", "topic": "2020-01-01"},
    {"prompt": "3.50", "chosen": "1", "rejected": "2", "user_id": "1e3", "topic": "true"},
]


class DatasetContract(ABC):
    """What holds for every format."""

    suffix: str

    @abstractmethod
    def write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Write rows with string columns."""

    def read(self, folder: Path, rows: list[dict[str, Any]], **description: Any) -> Dataset:
        import yaml

        self.write(folder / f"d{self.suffix}", rows)
        fields = {key: key for key in ("user_id", "topic") if key in rows[0]}
        tree = {"name": "d", "source": f"d{self.suffix}", "license": "CC0-1.0", "fields": fields, **description}
        (folder / "d.yaml").write_text(yaml.safe_dump(tree))
        return read_dataset(find_dataset(str(folder / "d.yaml")), need_user=True)

    def test_the_columns_are_trls_and_ours(self, tmp_path: Path) -> None:
        data = self.read(tmp_path, votes(5))
        assert set(data.column_names) == COLUMNS
        row = data[0]
        assert [m["role"] for m in row["prompt"]] == ["user"]
        assert [m["role"] for m in row["chosen"]] == ["assistant"]

    def test_the_content_is_that_of_any_other_format(self, tmp_path: Path) -> None:
        for rows in (votes(20), HARD):
            oracle = [(r["prompt"], r["chosen"], r["rejected"], r["user_id"], r["topic"]) for r in rows]
            read = [
                (*(r[key][0]["content"] for key in ("prompt", "chosen", "rejected")), r["user_id"], r["topic"])
                for r in self.read(tmp_path, rows)
            ]
            assert read == oracle

    def test_a_file_alone_is_a_data_set_too(self, tmp_path: Path) -> None:
        described = self.read(tmp_path, votes(5)).remove_columns("topic").to_list()
        alone = read_dataset(find_dataset(str(tmp_path / f"d{self.suffix}")), need_user=True)
        assert alone.remove_columns("topic").to_list() == described

    def test_nothing_is_cached_on_disk(self, tmp_path: Path) -> None:
        data = self.read(tmp_path, votes(5))
        assert data.cache_files == []
        assert {p.name for p in tmp_path.iterdir()} == {f"d{self.suffix}", "d.yaml"}

    def test_a_digest_that_differs_a_missing_column_and_a_missing_user_are_coded(self, tmp_path: Path) -> None:
        with pytest.raises(DigestError):
            self.read(tmp_path, votes(5), sha256="0" * 64)
        with pytest.raises(DatasetError, match="topic"):
            self.read(tmp_path, votes(5), fields={"user_id": "user_id", "topic": "theme"})
        with pytest.raises(MissingUserError):
            self.read(tmp_path, [{**row, "user_id": ""} for row in votes(5)])

    def test_a_truncated_file_is_never_read_as_a_shorter_one(self, tmp_path: Path) -> None:
        """At any cut the file is refused, or (a format without an end mark) lacks whole rows only, never part of one."""
        whole = self.read(tmp_path, votes(10)).to_list()
        path = tmp_path / f"d{self.suffix}"
        data = path.read_bytes()
        for cut in range(0, len(data), max(1, len(data) // 60)):
            path.write_bytes(data[:cut])
            try:
                rows = read_dataset(find_dataset(str(tmp_path / "d.yaml")), need_user=True).to_list()
            except (BrokenFileError, DatasetError, MissingUserError):
                continue
            assert rows == whole[: len(rows)], cut

    def test_extra_columns_never_reach_the_records(self, tmp_path: Path) -> None:
        data = self.read(tmp_path, [{**row, "margin": "planted-margin"} for row in votes(5)])
        assert "planted-margin" not in str(data.to_list())
        assert "planted-margin" not in repr(check_records(data)[0])

    def test_labelled_answers_and_prompts_are_data_sets_too(self, tmp_path: Path) -> None:
        rows = [
            {
                "prompt": f"Why {i}?",
                "completion": f"because {i}",
                "label": i % 2 == 0,
                "user_id": "anna",
                "final": f"#### {i}",
            }
            for i in range(5)
        ]
        labelled = self.read(tmp_path, rows, format="unpaired_preference")
        assert set(labelled.column_names) == {"prompt", "completion", "label", "user_id", "topic", "client"}
        assert labelled["label"][:] == [True, False, True, False, True]
        assert labelled[1]["completion"] == [{"role": "assistant", "content": "because 1"}]
        prompts = self.read(tmp_path, rows, format="prompt_only", fields={"answer": "final"}, answer_after="####")
        assert set(prompts.column_names) == {"prompt", "answer", "user_id", "topic", "client"}
        assert prompts["answer"][:] == ["0", "1", "2", "3", "4"]
        assert labelled.cache_files == prompts.cache_files == []


class TestJsonl(DatasetContract):
    suffix = ".jsonl"

    def write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        write_jsonl(path, rows)


class TestCsv(DatasetContract):
    suffix = ".csv"

    def write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def test_a_truncated_file_is_never_read_as_a_shorter_one(self, tmp_path: Path) -> None:
        """A CSV row that is cut inside its last text is still a row: only the description's digest shows the cut."""
        self.write(tmp_path / "d.csv", votes(10))
        digest = hashlib.sha256((tmp_path / "d.csv").read_bytes()).hexdigest()
        self.read(tmp_path, votes(10), sha256=digest)
        (tmp_path / "d.csv").write_bytes((tmp_path / "d.csv").read_bytes()[:-3])
        with pytest.raises(DigestError):
            read_dataset(find_dataset(str(tmp_path / "d.yaml")), need_user=True)


class TestJson(DatasetContract):
    """One array of objects."""

    suffix = ".json"

    def write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


class TestParquet(DatasetContract):
    suffix = ".parquet"

    def write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
