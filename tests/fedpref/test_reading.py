"""Files -> data sets: formats, forms, and everything that can be wrong with a file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fedpref.data.preferences import check_records
from fedpref.data.reading import files_of, read_dataset
from fedpref.data.schema import GIVEN
from fedpref.data.spec import DatasetSpec, find_dataset, list_datasets
from fedpref.errors import BrokenFileError, DatasetError, DigestError, MissingUserError, MixedSchemaError
from fedpref.recipes import recipes_folder
from tests.tiny import write_dataset, write_jsonl

PLANTED = "Zebra-planted-text"
ROW = {"prompt": "Why?", "chosen": f"{PLANTED} one", "rejected": f"{PLANTED} two", "user_id": "anna", "topic": "cats"}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}


def spec_of(path: Path, **fields: str) -> DatasetSpec:
    return DatasetSpec(name="t", source=str(path), license="CC0-1.0", fields=fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_datasets())
def test_every_shipped_description_loads_and_its_file_has_the_digest(name: str) -> None:
    spec = find_dataset(name)
    assert spec.license
    assert spec.attribution
    assert spec.sha256 or not spec.public
    if spec.source == GIVEN or not spec.is_local:
        return
    assert spec.sha256
    (file,) = files_of(spec)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == spec.sha256


def test_every_file_of_the_datasets_folder_is_listed() -> None:
    assert list_datasets() == sorted(p.stem for p in (recipes_folder() / "datasets").iterdir())


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_standard_form_becomes_conversations(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"d{suffix}", [ROW])
    (row,) = read_dataset(spec_of(path, user_id="user_id", topic="topic"), need_user=True)
    assert row == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": ROW["chosen"]}],
        "rejected": [{"role": "assistant", "content": ROW["rejected"]}],
        "user_id": "anna",
        "topic": "cats",
        "client": "",
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_conversational_form_keeps_every_message_of_the_prompt(tmp_path: Path, suffix: str) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    row = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "user_id": "anna",
    }
    path = WRITERS[suffix](tmp_path / f"d{suffix}", [row])
    (read,) = read_dataset(spec_of(path), need_user=True)
    assert read["prompt"] == prompt
    assert read["chosen"][0]["content"] == "yes"


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_that_the_description_does_not_name_are_never_read(tmp_path: Path, suffix: str) -> None:
    row = {**ROW, "margin": "0.9317", "notes": "left-handed"}
    path = WRITERS[suffix](tmp_path / f"d{suffix}", [row])
    data = read_dataset(spec_of(path, topic="topic"), need_user=True)
    assert set(data.column_names) == {"prompt", "chosen", "rejected", "user_id", "topic", "client"}
    preferences, _ = check_records(data)
    assert "0.9317" not in repr(preferences)
    assert "left-handed" not in repr(preferences)


def test_the_shipped_votes_map_the_annotator_and_leave_the_margin_in_the_file() -> None:
    spec = find_dataset("ukpconvarg1")
    raw = pyarrow.parquet.read_table(spec.path)
    assert "margin" in raw.column_names
    assert "margin" not in repr(spec.fields)
    assert spec.fields.user_id == "client_id"
    data = read_dataset(spec, need_user=True)
    assert "margin" not in data.column_names
    assert len(data) == spec.facts["records"]
    assert set(data["user_id"][:50]) == {str(x) for x in raw.column("client_id")[:50].to_pylist()}


def test_a_missing_user_column_is_refused_for_unit_user_only(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{k: ROW[k] for k in ("prompt", "chosen", "rejected")}] * 2)
    with pytest.raises(MissingUserError, match="no column is mapped to user_id") as caught:
        read_dataset(spec_of(path), need_user=True)
    assert caught.value.code == "FP204"
    assert len(set(read_dataset(spec_of(path), need_user=False)["user_id"])) == 2  # every row its own


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("user", ["", "   ", None])
def test_an_empty_user_is_refused_with_its_row(tmp_path: Path, suffix: str, user: str | None) -> None:
    path = WRITERS[suffix](tmp_path / f"d{suffix}", [ROW, {**ROW, "user_id": user}, ROW])
    with pytest.raises(MissingUserError, match=r"1 of 3 rows, first row 2") as caught:
        read_dataset(spec_of(path), need_user=True)
    assert PLANTED not in str(caught.value)


def test_a_user_that_is_not_a_number_is_no_user(tmp_path: Path) -> None:
    rows = [{**ROW, "user_id": 1.0}, {**ROW, "user_id": float("nan")}]
    with pytest.raises(MissingUserError, match="first row 2"):
        read_dataset(spec_of(write_parquet(tmp_path / "d.parquet", rows)), need_user=True)


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [ROW])
    spec = spec_of(path).model_copy(update={"sha256": "0" * 64})
    with pytest.raises(DigestError, match="SHA-256 differs") as caught:
        read_dataset(spec, need_user=True)
    assert caught.value.code == "FP202"


def _broken(path: Path) -> BrokenFileError:
    with pytest.raises(BrokenFileError) as caught:
        read_dataset(spec_of(path), need_user=True)
    assert caught.value.code == "FP203"
    assert path.name in caught.value.what
    assert PLANTED not in str(caught.value), "a message names rows, never texts"
    return caught.value


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_parquet_file_is_coded(tmp_path: Path, keep: float) -> None:
    path = write_parquet(tmp_path / "d.parquet", [ROW] * 20)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    _broken(path)


def test_a_truncated_line_of_jsonl_is_coded_and_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [ROW] * 3)
    path.write_text(path.read_text()[:-30])
    assert "line 3" in _broken(path).why


@pytest.mark.parametrize("line", ["[1, 2]", "3", '"text"', "null"])
def test_a_line_that_is_no_object_is_coded(tmp_path: Path, line: str) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [ROW])
    path.write_text(path.read_text() + line + "\n")
    assert "line 2" in _broken(path).why


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_coded(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = WRITERS[suffix](tmp_path / f"d{suffix}", [{**ROW, "prompt": "Où?"}])
    text = json.dumps({**ROW, "prompt": "Où?"}, ensure_ascii=False) if suffix == ".jsonl" else path.read_text("utf-8")
    path.write_bytes(text.encode(encoding))
    assert "UTF-8" in _broken(path).fix


def test_a_csv_row_with_a_column_too_few_is_coded_without_its_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", [ROW])
    path.write_text(path.read_text() + f"Why?,{PLANTED}\n")
    _broken(path)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({**ROW, "user_id": PLANTED}, "has a string in column 'user_id', rows before it have a number"),
        ({**ROW, "user_id": 4, "chosen": [{"role": "assistant", "content": PLANTED}]}, "has a list in column 'chosen'"),
        ({"prompt": "Why?", "better": PLANTED, "worse": PLANTED, "user_id": 4}, "has no column 'chosen'"),
    ],
)
def test_rows_of_two_schemas_are_coded_without_their_content(tmp_path: Path, second: dict[str, Any], says: str) -> None:
    for name, write in (("d.jsonl", write_jsonl), ("d.json", write_array)):
        path = write(tmp_path / name, [{**ROW, "user_id": 3}] * 3000 + [second])
        with pytest.raises(MixedSchemaError, match=f"Row 3001 {says}") as caught:
            read_dataset(spec_of(path), need_user=True)
        assert caught.value.code == "FP206"
        assert PLANTED not in str(caught.value)


def test_a_user_column_that_only_later_rows_have_is_never_overlooked(tmp_path: Path) -> None:
    rows = [{k: v for k, v in ROW.items() if k != "user_id"}, ROW]
    with pytest.raises(MixedSchemaError, match="Row 2 has a column 'user_id'"):
        read_dataset(spec_of(write_jsonl(tmp_path / "d.jsonl", rows)), need_user=False)


def test_a_row_that_is_no_record_is_named_without_its_text(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": PLANTED}] * 2
    fine = {**ROW, "chosen": turns[:1], "rejected": turns[:1]}
    path = write_jsonl(tmp_path / "d.jsonl", [fine, {**fine, "chosen": turns}])
    with pytest.raises(DatasetError, match="row 2") as caught:
        read_dataset(spec_of(path), need_user=True)
    assert caught.value.code == "FP201"
    assert PLANTED not in str(caught.value)


def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"question": "a", "better": "b", "worse": "c", "user_id": "u"}])
    with pytest.raises(DatasetError, match=r"prompt \(column 'prompt'\).*better, question"):
        read_dataset(spec_of(path), need_user=True)
    read_dataset(spec_of(path, prompt="question", chosen="better", rejected="worse"), need_user=True)


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({**ROW, "chosen": text}, ensure_ascii=False) + "\r\n", "utf-8")
    (row,) = read_dataset(spec_of(path), need_user=True)
    assert row["chosen"][0]["content"] == text


def test_csv_texts_stay_texts_and_may_have_several_lines(tmp_path: Path) -> None:
    rows = [
        {**ROW, "chosen": 'first\nsecond, with "quotes"', "rejected": "2020-01-01", "user_id": "007"},
        {**ROW, "chosen": "3", "rejected": "2021-01-01", "user_id": "7"},
    ]
    data = read_dataset(spec_of(write_csv(tmp_path / "d.csv", rows)), need_user=True)
    assert [row["chosen"][0]["content"] for row in data] == [row["chosen"] for row in rows]
    assert [row["rejected"][0]["content"] for row in data] == ["2020-01-01", "2021-01-01"]
    assert data["user_id"][:] == ["007", "7"], "two people must not become one"


def test_a_data_set_that_does_not_exist_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Did you mean 'ukpconvarg1'"):
        find_dataset("ukpconvarg")
    spec = spec_of(tmp_path / "nowhere.jsonl")
    with pytest.raises(DatasetError, match="no data at"):
        files_of(spec)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"licence": "x"}, "licence"), ({"license": None}, "license"), ({"fields": {"usr": "a"}}, "fields.usr")],
)
def test_a_description_outside_the_schema_is_coded(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    import yaml

    path = write_dataset(tmp_path, [ROW])
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=says) as caught:
        find_dataset(str(path))
    assert caught.value.code == "FP201"


@pytest.mark.parametrize("missing", ["reason", "sha256"])
def test_public_data_without_reason_or_digest_are_refused(tmp_path: Path, missing: str) -> None:
    import yaml

    path = write_dataset(tmp_path, [ROW])
    fields = {**yaml.safe_load(path.read_text()), "public": True, "reason": "r", "sha256": "0" * 64}
    del fields[missing]
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(DatasetError, match="public data need license, sha256 and reason"):
        find_dataset(str(path))


def test_reading_writes_no_cache_anywhere(tmp_path: Path) -> None:
    """Arrow caches are leaks (rule 16): a fresh process with fresh cache folders leaves them empty."""
    data = tmp_path / "data"
    data.mkdir()
    paths = [str(WRITERS[suffix](data / f"d{suffix}", [ROW] * 3)) for suffix in WRITERS]
    folders = {
        name: tmp_path / name
        for name in ("HOME", "HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TMPDIR", "FEDPREF_CACHE")
    }
    for folder in folders.values():
        folder.mkdir()
    before = {p: p.read_bytes() for p in data.iterdir()}
    code = (
        "import sys\n"
        "from fedpref.data.reading import read_dataset\n"
        "from fedpref.data.spec import find_dataset\n"
        "from fedpref.data.preferences import check_records\n"
        "for path in sys.argv[1:]:\n"
        "    data = read_dataset(find_dataset(path), need_user=True)\n"
        "    assert len(check_records(data)[0]) == 1 and data.cache_files == []\n"
    )
    environment = {**os.environ, **{name: str(folder) for name, folder in folders.items()}}
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [p for folder in folders.values() for p in folder.rglob("*")] == []
    assert {p: p.read_bytes() for p in data.iterdir()} == before
