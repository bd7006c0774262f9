"""A run folder is started, half-finished, finished, foreign or of another version, and says so."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import fedpref.api
from fedpref.config import Recipe
from fedpref.errors import DiskError, RunFolderError
from fedpref.folder import RunFolder
from fedpref.journal import Checkpoints, SealedJournal, write_durably
from fedpref.plan import make_plan
from fedpref.tracking import JsonlTracker
from privacy.errors import CodedError, LedgerError, LedgerWriteError
from privacy.ledger import Reservation, read_ledger
from privacy.report import verify
from tests.fedpref.conftest import speak
from tests.tiny import make_recipe, train

SEEDED: dict[str, Any] = {"privacy__rng": "seeded", "federation__num_rounds": 3}


def begin(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    folder = RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, make_plan(recipe).digest, resume=resume)
    return folder


def refused(recipe: Recipe, says: str, *, resume: bool = False) -> RunFolderError:
    before = {p: p.read_bytes() for p in Path(recipe.output_dir).rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match=says) as caught:
        begin(recipe, resume=resume)
    assert caught.value.code == "FP501"
    assert caught.value.fix
    assert {p: p.read_bytes() for p in Path(recipe.output_dir).rglob("*") if p.is_file()} == before
    return caught.value


def test_a_started_folder_holds_the_resolved_recipe_and_a_private_nodes_folder(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    folder = begin(recipe)
    assert folder.recipe() == recipe
    assert folder.status()["status"] == "started"
    assert stat.S_IMODE((folder.path / "nodes").stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.node.stat().st_mode) == 0o700


def test_a_wide_umask_does_not_open_the_nodes_folder(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = begin(make_recipe(tmp_path))
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder.path / "nodes").stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.node.stat().st_mode) == 0o700


def test_a_resumed_run_closes_a_nodes_folder_that_somebody_opened(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    nodes = begin(recipe).path / "nodes"
    for folder in (nodes, nodes / "local"):
        folder.chmod(0o755)
    begin(recipe, resume=True)
    assert stat.S_IMODE(nodes.stat().st_mode) == 0o700
    assert stat.S_IMODE((nodes / "local").stat().st_mode) == 0o700


def test_an_empty_or_missing_folder_is_begun_with_and_without_resume(tmp_path: Path) -> None:
    for name, resume in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        recipe = make_recipe(tmp_path / name, output_dir=str(tmp_path / name / "deep/er/run"))
        assert begin(recipe, resume=resume).status()["status"] == "started"
    (tmp_path / "empty").mkdir()
    begin(make_recipe(tmp_path, output_dir=str(tmp_path / "empty")))


def test_a_start_that_failed_before_any_book_may_be_begun_anew(tmp_path: Path) -> None:
    """A wrong topic or a missing file is mended in the recipe; nothing was spent, so nothing is to be resumed."""
    begin(make_recipe(tmp_path))
    mended = make_recipe(tmp_path, federation__num_rounds=3)
    begin(mended)
    assert RunFolder(Path(mended.output_dir)).recipe() == mended


def test_a_half_finished_folder_wants_resume(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    begin(recipe)
    RunFolder(Path(recipe.output_dir)).ledger.touch()
    assert "--resume" in refused(recipe, "half-finished").fix
    begin(recipe, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_folder_is_never_run_again(tmp_path: Path, resume: bool) -> None:
    recipe = make_recipe(tmp_path)
    begin(recipe).finish()
    assert "output_dir" in refused(recipe, "this run is finished", resume=resume).fix


@pytest.mark.parametrize("change", [{"seed": 1}, {"privacy__max_grad_norm": 1.0}, {"evaluation__salt": "s"}])
def test_a_folder_of_another_recipe_is_not_resumed(tmp_path: Path, change: dict[str, Any]) -> None:
    begin(make_recipe(tmp_path))
    refused(make_recipe(tmp_path, **change), "started with another recipe", resume=True)


@pytest.mark.parametrize("schema", ["fedpref-run-0", "fedpref-run-2", None, 1])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_another_version_is_refused(tmp_path: Path, schema: object, resume: bool) -> None:
    recipe = make_recipe(tmp_path)
    folder = begin(recipe)
    path = folder.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    refused(recipe, "another version", resume=resume)
    with pytest.raises(RunFolderError, match="another version"):
        fedpref.Run(folder.path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "\x00"])
def test_a_run_json_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    recipe = make_recipe(tmp_path)
    folder = begin(recipe)
    (folder.path / "run.json").write_text(content)
    refused(recipe, r"no run folder|another version", resume=True)


@pytest.mark.parametrize("foreign", ["thesis.docx", "recipe.yaml", "nodes", ".run.json.part"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, foreign: str, resume: bool) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / foreign).write_text("my own")
    refused(make_recipe(tmp_path, output_dir=str(target)), "is no run folder", resume=resume)


def test_a_file_where_the_folder_should_be_is_coded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CodedError) as caught:
            begin(make_recipe(tmp_path, output_dir=str(output)))
        assert caught.value.code in {"FP501", "FP502"}


def test_a_path_that_is_no_run_is_coded(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match="is no run folder"):
            fedpref.Run(path)


def test_an_unfinished_run_has_no_evaluation_and_says_so(tmp_path: Path) -> None:
    run = fedpref.Run(begin(make_recipe(tmp_path)).path)
    for content in (None, "{"):
        if content:
            (run.path / "evaluation.json").write_text(content)
        with pytest.raises(RunFolderError, match="has no evaluation") as caught:
            _ = run.evaluation
        assert "--resume" in caught.value.fix


# A full disk. Writing to /dev/full gives the operating system's own ENOSPC.


@contextmanager
def full_at(path: Path) -> Iterator[None]:
    """The disk is full for this one file while this is entered."""
    path.symlink_to("/dev/full")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def resumes(recipe: Recipe) -> None:
    train(recipe, resume=True)
    run = Path(recipe.output_dir)
    assert verify(run).ok
    assert [r.round for r in read_ledger(run / "ledger.jsonl").reservations] == [1, 2, 3]


@pytest.mark.parametrize("file", ["checkpoints/..prepared-000002.safetensors.part", "nodes/local/.sealed.bin.part"])
def test_a_full_disk_in_the_middle_of_a_run_is_coded_and_resumable(tmp_path: Path, file: str) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    path = Path(recipe.output_dir) / file
    begin(recipe)
    path.parent.mkdir(exist_ok=True)
    with full_at(path), pytest.raises(DiskError, match="No space left") as caught:
        train(recipe, resume=True)
    assert caught.value.code == "FP502"
    assert "--resume" in caught.value.fix
    resumes(recipe)


@pytest.mark.parametrize("file", [".recipe.yaml.part", ".run.json.part"])
def test_a_full_disk_at_the_very_beginning_is_coded_and_resumable(tmp_path: Path, file: str) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    run = Path(recipe.output_dir)
    (run / "nodes/local").mkdir(parents=True)
    with full_at(run / file), pytest.raises(DiskError, match="No space left"):
        begin(recipe)
    resumes(recipe)


def test_a_full_disk_at_the_metrics_is_coded_and_resumable(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    begin(recipe)
    metrics = Path(recipe.output_dir) / "metrics.jsonl"
    with full_at(metrics), pytest.raises(DiskError, match="No space left") as caught:
        train(recipe, resume=True, trackers=[JsonlTracker(metrics)])
    assert caught.value.code == "FP502"
    resumes(recipe)


RELEASED = ("reward_head.safetensors", "reward_config.json", "README.md")
WRITTEN_ONCE = [  # in the order of a run
    "plan.json",
    "nodes/local/features.safetensors",
    *(f"release/reward/{name}" for name in RELEASED),
    "evaluation.json",
    "report.json",
    "report.txt",
    "release/manifest.json",
]


def test_a_full_disk_at_any_file_of_a_run_is_coded_leaves_it_whole_or_absent_and_is_resumable(
    tmp_path: Path, tiny_model: Path
) -> None:
    recipe = make_recipe(tmp_path, tiny_model, **SEEDED)
    run = begin(recipe).path
    (run / "release/reward").mkdir(parents=True)
    for name in WRITTEN_ONCE:
        path = run / name
        with full_at(path.with_name(f".{path.name}.part")), pytest.raises(DiskError, match="No space left") as caught:
            fedpref.api.run(recipe, resume=True)
        assert caught.value.what.startswith(path.name)
        assert not path.exists()
        assert fedpref.Run(run).status["status"] == "started"
    assert fedpref.api.run(recipe, resume=True).status["status"] == "finished"
    assert verify(run).ok
    assert all((run / name).exists() for name in WRITTEN_ONCE)


@pytest.mark.parametrize("folder", ["release", "checkpoints"])
def test_a_folder_that_cannot_be_made_is_coded(tmp_path: Path, tiny_model: Path, folder: str) -> None:
    recipe = make_recipe(tmp_path, tiny_model, **SEEDED)
    (begin(recipe).path / folder).write_text("in the way")
    with pytest.raises(DiskError, match="could not be written") as caught:
        fedpref.api.run(recipe, resume=True)
    assert caught.value.code == "FP502"


def test_a_full_disk_at_a_copied_recipe_is_coded(tmp_path: Path) -> None:
    with full_at(tmp_path / ".mine.yaml.part"):
        spoken = speak("recipes", "copy", "quickstart", str(tmp_path / "mine.yaml"))
    assert spoken.code == 1
    assert spoken.err.startswith("error[FP502] mine.yaml could not be written.")
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("call", range(2, 10))
def test_a_full_disk_at_a_ledger_stops_before_the_round_and_is_resumable(tmp_path: Path, call: int) -> None:
    recipe, count, write = make_recipe(tmp_path, **SEEDED), 0, os.write

    def full(fd: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > call:
            written = write(fd, data[: len(data) // 2])  # part of the line still fits
            if count > call + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written
        return write(fd, data)

    with mock.patch.object(os, "write", full), pytest.raises(LedgerWriteError) as caught:
        train(recipe)
    assert caught.value.code == "FP421"
    assert "--resume" in caught.value.fix
    resumes(recipe)


@pytest.mark.parametrize("call", range(6))
def test_a_disk_that_cannot_sync_stops_the_round(tmp_path: Path, call: int) -> None:
    recipe, count, sync = make_recipe(tmp_path, **SEEDED), 0, os.fsync
    begin(recipe)

    def broken(fd: int) -> None:
        nonlocal count
        count += 1
        if count == 5 + call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    with mock.patch.object(os, "fsync", broken), pytest.raises(CodedError) as caught:
        train(recipe, resume=True)
    assert caught.value.code in {"FP421", "FP502"}
    resumes(recipe)


def test_a_durable_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    with full_at(tmp_path / ".file.part"), pytest.raises(DiskError):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    write_durably(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(DiskError, match="could not be written"):
        write_durably(tmp_path / "no folder" / "file", b"")


def reservation(number: int, seq: int = 1) -> Reservation:
    """A reservation as the node's ledger would give it out."""
    return Reservation(seq, number, {}, hash=f"hash {seq}").grant()


def booked(seq: int, digest: str) -> bool:
    """A ledger that has every reservation."""
    return digest == f"hash {seq}"


def test_the_sealed_journal_keeps_the_last_round_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = SealedJournal(tmp_path / "sealed.bin", "plan")
    assert journal.load(1, booked) is None
    assert journal.intact()
    journal.save(reservation(1), [b"one", b"", b"three"])
    assert journal.load(1, booked) == [b"one", b"", b"three"]
    assert journal.load(2, booked) is None
    digest = journal.save(reservation(2), [b"x" * 100])
    assert len(digest) == 64
    assert journal.load(1, booked) is None
    whole = (tmp_path / "sealed.bin").read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:60] + b"?" + whole[61:], b"\0" * len(whole)):
        (tmp_path / "sealed.bin").write_bytes(damaged)
        assert journal.load(2, booked) is None
        assert not journal.intact()
    journal.clear()
    journal.clear()
    assert journal.load(2, booked) is None


def test_kept_bytes_of_another_plan_are_never_sent_nor_replaced(tmp_path: Path) -> None:
    SealedJournal(tmp_path / "sealed.bin", "plan").save(reservation(1), [b"one"])
    for number in (1, 2):
        with pytest.raises(RunFolderError, match="another plan"):
            SealedJournal(tmp_path / "sealed.bin", "other").load(number, booked)


def test_kept_bytes_whose_booking_is_gone_say_that_the_ledger_was_rolled_back(tmp_path: Path) -> None:
    journal = SealedJournal(tmp_path / "sealed.bin", "plan")
    journal.save(reservation(3, seq=5), [b"one"])
    for holds in (lambda seq, digest: False, lambda seq, digest: (seq, digest) == (5, "another line")):
        with pytest.raises(LedgerError, match="does not have line 5"):
            journal.load(3, holds)


def test_a_journal_of_the_first_version_is_refused_because_its_bytes_may_have_been_sent(tmp_path: Path) -> None:
    body = np.array([1, 1, 3], dtype="<i8").tobytes() + b"one"
    (tmp_path / "sealed.bin").write_bytes(hashlib.sha256(body).digest() + body)
    with pytest.raises(RunFolderError, match="form of this version"):
        SealedJournal(tmp_path / "sealed.bin", "plan").load(1, booked)


def test_checkpoints_give_back_the_newest_and_skip_what_was_never_finished(tmp_path: Path) -> None:
    import numpy as np

    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.last() == (0, None)
    for number in (1, 2, 10):
        checkpoints.prepare(number, {"x": np.full(2, float(number))})
        assert checkpoints.publish(number)
    checkpoints.prepare(11, {"x": np.zeros(2)})  # prepared, never committed: no release
    (tmp_path / "c/.round-000011.safetensors.part").write_bytes(b"half")
    done, state = checkpoints.last()
    assert done == 10
    assert state is not None
    assert state["x"].tolist() == [10.0, 10.0]
