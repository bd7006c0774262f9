"""Streams: batches of bounded size, whatever the file; every broken file is coded without its content."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset, IterableDataset

from fedpref.data import files, remote, spec
from fedpref.data.files import BATCH
from fedpref.data.mapping import describe_file
from fedpref.data.reading import Reading, read_dataset
from fedpref.data.spec import DatasetSpec, find_dataset
from fedpref.errors import BrokenFileError, DatasetError, DigestError, MixedSchemaError, NoNetworkError
from privacy.errors import CodedError
from tests.fedpref.test_reading import PLANTED, ROW, WRITERS, spec_of, write_array, write_csv, write_jsonl

ALL_WRITERS = {**WRITERS, ".json": write_array}


def peak_of(path: Path, rows: int) -> int:
    """Most bytes of Python objects alive at once while the file is read (Arrow's own memory is not counted)."""
    reading = Reading(spec_of(path), need_user=True)
    tracemalloc.start()
    try:
        sizes = [table.num_rows for table in reading.tables()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == reading.num_rows == rows
    assert max(sizes) <= files.BATCH
    return peak


@pytest.mark.parametrize("suffix", ALL_WRITERS)
def test_no_more_than_one_batch_is_ever_held_as_objects(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BATCH", 64)
    monkeypatch.setattr(files, "_BLOCK", 4096)
    peaks = []
    for n in (64, 128, 2048):  # the first pass warms caches
        rows = [{**ROW, "chosen": f"{i} " + "x" * 200, "user_id": str(i % 7)} for i in range(n)]
        path = ALL_WRITERS[suffix](tmp_path / f"{n}{suffix}", rows)
        del rows
        peaks.append(peak_of(path, n))
    assert peaks[2] < 1.5 * peaks[1], "sixteen times the rows, and no more memory"


def test_a_batch_is_read_before_the_next_one_is(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [ROW] * (BATCH + 1))
    path.write_text(path.read_text() + "{broken\n")
    tables = Reading(spec_of(path), need_user=True).tables()
    assert next(tables).num_rows == BATCH
    with pytest.raises(BrokenFileError, match=f"line {BATCH + 2}"):
        next(tables)


@pytest.mark.parametrize("text", ["[", "[ROW", "[ROW,", "[ROW, 3]", "[ROW] ROW", '[{"a": tru}]', "[ROW, {]"])
def test_a_broken_array_is_coded(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text.replace("ROW", json.dumps(ROW)))
    with pytest.raises(BrokenFileError):
        read_dataset(spec_of(path), need_user=False)


def test_an_array_may_be_longer_than_a_block_and_its_texts_too(tmp_path: Path) -> None:
    rows = [{**ROW, "chosen": str(i) + "é" * (1 << 20)} for i in range(3)] + [{**ROW, "rejected": '], [{"'}] * 3
    path = write_array(tmp_path / "d.json", rows)
    read = read_dataset(spec_of(path), need_user=True)
    assert [row["chosen"][0]["content"] for row in read] == [row["chosen"] for row in rows]


def test_a_file_in_utf_16_is_told_how_to_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(write_csv(tmp_path / "u.csv", [ROW]).read_text().encode("utf-16"))
    with pytest.raises(BrokenFileError, match="iconv -f UTF-16"):
        read_dataset(spec_of(path), need_user=True)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, suffix: str) -> None:
    path = ALL_WRITERS[suffix](tmp_path / f"d{suffix}", [ROW])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_dataset(spec_of(path), need_user=True)) == 1


def test_a_csv_text_may_be_longer_than_pythons_default_limit(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", [{**ROW, "chosen": "x" * 300_000}])
    assert len(read_dataset(spec_of(path), need_user=True)[0]["chosen"][0]["content"]) == 300_000


def test_a_csv_with_one_name_twice_or_an_open_quote_is_coded(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("prompt,chosen,chosen\na,b,c\n")
    with pytest.raises(MixedSchemaError, match="two columns"):
        read_dataset(spec_of(path), need_user=False)
    path.write_text(f'prompt,chosen,rejected\na,b,"{PLANTED}\n')
    with pytest.raises(BrokenFileError) as caught:
        read_dataset(spec_of(path), need_user=False)
    assert PLANTED not in str(caught.value)


def test_a_column_that_is_missing_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [ROW])
    with pytest.raises(DatasetError, match=r"user_id \(column 'userid'\).*Did you mean 'user_id' for 'userid'"):
        read_dataset(spec_of(path, user_id="userid"), need_user=True)


@pytest.mark.parametrize(
    "read", [lambda path: read_dataset(spec_of(path), need_user=True), lambda path: describe_file(path, {})]
)
def test_a_csv_file_without_a_header_line_never_shows_its_first_row(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"{PLANTED} one,{PLANTED} two,{PLANTED}\n")
    with pytest.raises(DatasetError, match="header line") as caught:
        read(path)
    assert PLANTED not in str(caught.value)


def test_where_keeps_the_rows_it_names(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{**ROW, "part": i % 2, "chosen": str(i)} for i in range(6)])
    chosen = DatasetSpec(name="d", source=str(path), license="CC0-1.0", where={"part": "1"})
    reading = Reading(chosen, need_user=True)
    rows = [row for table in reading.tables() for row in table.to_pylist()]
    assert [(row["row"], row["chosen"][0]["content"]) for row in rows] == [(2, "1"), (4, "3"), (6, "5")]
    assert reading.num_rows == 3
    with pytest.raises(DatasetError, match=r"where\.split"):
        read_dataset(chosen.model_copy(update={"where": {"split": "train"}}), need_user=True)


def test_a_description_with_the_users_file_keeps_its_digest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "q", "answer": "1\n#### 2"}])
    assert find_dataset(f"gsm8k@{path}").path == path
    with pytest.raises(DigestError, match="is not the file that the description of gsm8k names"):
        read_dataset(find_dataset(f"gsm8k@{path}"), need_user=False)
    with pytest.raises(DatasetError, match="No file"):
        find_dataset("gsm8k@nowhere.jsonl")
    with pytest.raises(DatasetError, match="Name your file: wmt_mqm@FILE"):
        _ = find_dataset("wmt_mqm").path


def hub_spec() -> DatasetSpec:
    return DatasetSpec(name="h", source="hub/org/name", license="MIT", fields={"user_id": "user_id"})  # type: ignore[arg-type]


def test_the_hub_offline_is_coded_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(NoNetworkError, match="h@FILE") as caught:
        read_dataset(hub_spec(), need_user=True)
    assert caught.value.code == "FP208"


def test_the_hub_is_streamed_and_its_cache_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stream(name: str, config: str | None, **options: Any) -> Any:
        asked.update(options, name=name, config=config)
        (Path(options["cache_dir"]) / "planted.arrow").write_text(PLANTED)
        return Dataset.from_list([ROW] * 3).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", stream)
    pinned = hub_spec().model_copy(update={"config": "main", "split": "test", "revision": "a" * 40})
    assert len(read_dataset(pinned, need_user=True)) == 3
    assert asked["streaming"] is True
    assert (asked["name"], asked["config"], asked["split"], asked["revision"]) == ("org/name", "main", "test", "a" * 40)
    assert not Path(asked["cache_dir"]).exists()


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("config 'x' is unknown; there is 'main'"), "FP201"), (None, "FP203")]
)
def test_what_is_wrong_on_the_hub_is_coded_without_a_value(
    monkeypatch: pytest.MonkeyPatch, error: ValueError | None, code: str
) -> None:
    def broken() -> Any:
        yield ROW
        raise pyarrow.ArrowInvalid(f"Could not convert '{PLANTED}'")

    def load(*_: Any, **__: Any) -> Any:
        if error:
            raise error
        return IterableDataset.from_generator(broken)

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(CodedError) as caught:
        read_dataset(hub_spec(), need_user=True)
    assert caught.value.code == code
    assert PLANTED not in str(caught.value)


def test_public_data_are_never_read_unchecked(tmp_path: Path) -> None:
    """A folder has no one digest, and a hub set's commit says nothing of somebody's file."""
    file = write_jsonl(tmp_path / "d.jsonl", [ROW])
    pinned = {
        "revision": "a" * 40,
        "public": True,
        "reason": "r",
        "license": "x",
        "source": "hub/org/name",
        "name": "h",
    }
    (tmp_path / "h.yaml").write_text(json.dumps(pinned))
    for source in (file, tmp_path):
        chosen = find_dataset(f"{tmp_path}/h.yaml@{source}")
        with pytest.raises(DigestError, match="never read unchecked"):
            read_dataset(chosen, need_user=False, path=file)


class Point:
    """An installed entry point."""

    value = "package.module:function"

    def __init__(self, made: Any) -> None:
        self._made = made

    def load(self) -> Any:
        def function() -> Any:
            if isinstance(self._made, Exception):
                raise self._made
            return self._made

        return function


@pytest.mark.parametrize("as_spec", [True, False])
def test_a_plug_in_gives_a_description_or_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_spec: bool
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [ROW] * 3)
    made = spec_of(path, user_id="user_id") if as_spec else Dataset.from_list([ROW] * 3)
    monkeypatch.setattr(spec, "plugins", lambda: {"theirs": Point(made)})
    data = read_dataset(find_dataset("theirs"), need_user=True)
    assert data["user_id"][:] == ["anna"] * 3
    assert remote.PLUGIN not in str(data.to_list())


@pytest.mark.parametrize("made", [RuntimeError(PLANTED), {"train": 1}, None])
def test_a_plug_in_that_fails_is_coded(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    monkeypatch.setattr(spec, "plugins", lambda: {"theirs": Point(made)})
    with pytest.raises(DatasetError, match="The plug-in 'theirs'") as caught:
        find_dataset("theirs")
    assert PLANTED not in str(caught.value)


def test_json_lines_that_are_one_object_each_stay_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW))
    assert len(read_dataset(spec_of(path), need_user=True)) == 2
