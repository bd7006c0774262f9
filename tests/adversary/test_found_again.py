"""What a second attacker found, each as a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedpref.data.loading import load_federated
from fedpref.errors import UnsupportedPlanError
from fedpref.journal import Checkpoints
from privacy.ledger import Ledger, read_ledger
from privacy.report import verify
from tests.fedpref.conftest import FinishedRun, finished  # noqa: F401 - a fixture
from tests.tiny import make_recipe, train, votes, write_dataset


def test_a_low_declaration_does_not_silence_an_honest_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit on a client's sum was 10 x num_units x C: one record more or less switched 30 people on or off."""
    from fedpref.training import _largest_norm
    from tests.tiny import training_input

    given = training_input(make_recipe(tmp_path, federation__num_units=1, federation__partition__num_clients=1))
    assert _largest_norm(given) >= len(given.data.roster.users) > 10
    train(
        make_recipe(tmp_path, federation__num_units=1, federation__partition__num_clients=1, privacy__sample_rate=1.0)
    )
    assert "left out" not in capsys.readouterr().err


def test_a_kill_before_the_commit_gives_no_second_draw_of_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, federation__num_rounds=2)
    prepared: list[bytes] = []
    prepare, commit = Checkpoints.prepare, Ledger.commit

    def spy(self: Checkpoints, round_number: int, state: dict[str, np.ndarray]) -> None:
        prepare(self, round_number, state)
        prepared.append(self._prepared(round_number).read_bytes())

    def killed(self: Ledger, reservation: object) -> None:
        if self.header.scope == "federation" and len(prepared) == 1:
            raise KeyboardInterrupt
        commit(self, reservation)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoints, "prepare", spy)
    monkeypatch.setattr(Ledger, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.setattr(Ledger, "commit", commit)
    train(recipe, resume=True)
    assert len(prepared) == 2  # one for each round
    first = Path(recipe.output_dir) / "checkpoints/round-000001.safetensors"
    assert first.read_bytes() == prepared[0]
    assert [r.round for r in read_ledger(Path(recipe.output_dir) / "ledger.jsonl").reservations] == [1, 2]


def test_a_copy_of_a_private_file_is_not_a_second_one(tmp_path: Path) -> None:
    first = write_dataset(tmp_path, votes(), "a")
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    second = tmp_path / "b.yaml"
    second.write_text(first.read_text().replace("a.jsonl", "b.jsonl").replace("name: a", "name: b"))
    recipe = make_recipe(tmp_path, datasets=[str(first), str(second)])
    with pytest.raises(UnsupportedPlanError, match="copy of another"):
        load_federated(recipe, lambda _: None)


def test_under_randomised_labels_no_label_decides_how_many_records_there_are(tmp_path: Path) -> None:
    """A pair given twice kept one record, given both ways none: the count told the true labels."""
    once = votes()
    counts = set()
    for flip in (False, True):
        again = [dict(row, chosen=row["rejected"], rejected=row["chosen"]) if flip else dict(row) for row in once]
        folder = tmp_path / str(flip)
        folder.mkdir()
        data = write_dataset(folder, once + again)
        labels = {"labels": "randomized_response", "label_epsilon": 1.0}
        privacy = {"noise_multiplier": 1.5, "sample_rate": 0.3, "max_grad_norm": 0.5, **labels}
        recipe = make_recipe(folder, datasets=[str(data)], privacy=privacy)
        counts.add(sum(len(part) for part in load_federated(recipe, lambda _: None).clients.values()))
    assert len(counts) == 1
    assert counts.pop() > 0


def test_private_feedback_is_not_public_text(tmp_path: Path) -> None:
    import hashlib

    data = write_dataset(tmp_path, votes(), "votes")
    digest = hashlib.sha256((tmp_path / "votes.jsonl").read_bytes()).hexdigest()
    public = tmp_path / "as_public.yaml"
    public.write_text(
        "name: as_public\nsource: votes.jsonl\nformat: prompt_completion\nlicense: CC0-1.0\n"
        f"fields: {{prompt: prompt, completion: chosen, topic: topic}}\nsha256: {digest}\npublic: true\nreason: none\n"
    )
    recipe = make_recipe(tmp_path, datasets=[str(data)], reward__public_data=str(public))
    with pytest.raises(UnsupportedPlanError, match="public data as well"):
        load_federated(recipe, lambda _: None)


def test_a_manifest_without_its_signature_or_a_finished_run_without_a_manifest_is_not_verified(
    finished: FinishedRun,  # noqa: F811
    tmp_path: Path,
) -> None:
    for name, change in (("unsigned", True), ("gone", False)):
        run = tmp_path / name
        shutil.copytree(finished.path, run)
        manifest = run / "release/manifest.json"
        if change:
            fields = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({k: v for k, v in fields.items() if k not in {"signature", "public_key"}}))
        else:
            manifest.unlink()
        verdict = verify(run)
        assert not verdict.ok, name


def test_a_file_called_manifest_in_a_subfolder_is_seen(finished: FinishedRun, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    (run / "release/reward/manifest.json").write_text("{}")
    assert not verify(run).ok


@pytest.mark.slow  # seconds
def test_a_node_that_booked_other_noise_is_found(tmp_path: Path) -> None:
    for name, z in (("a", 1.5), ("b", 0.4)):
        (tmp_path / name).mkdir()
        train(make_recipe(tmp_path / name, privacy__noise_multiplier=z))
    for file in ("ledger.jsonl", "ledger.jsonl.head.json", "ledger.jsonl.key"):
        source = tmp_path / "b/run/nodes/local" / file
        if source.exists():
            shutil.copy(source, tmp_path / "a/run/nodes/local" / file)
    verdict = verify(tmp_path / "a/run")
    assert any("different noise" in line for line in verdict.failed)


def test_eval_refuses_once_the_runs_data_file_was_rotated(finished: FinishedRun, tmp_path: Path) -> None:  # noqa: F811
    import fedpref
    from fedpref.errors import RunFolderError

    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    assert fedpref.Run(run).evaluate(finished.recipe.datasets[0])["pairs"] > 0
    (run / "nodes/local/data.json").write_text('{"votes": ["0"]}')
    with pytest.raises(RunFolderError, match="whom this run was trained on"):
        fedpref.Run(run).evaluate(finished.recipe.datasets[0])


def test_blanks_and_unicode_forms_do_not_make_another_person(tmp_path: Path) -> None:
    rows = [
        {**row, "user_id": name} for row, name in zip(votes()[:4], ("Zoë", "Zoe\u0308", " Zoë", "Zoë "), strict=True)
    ]
    recipe = make_recipe(
        tmp_path,
        datasets=[str(write_dataset(tmp_path, rows))],
        evaluation__unseen_topics=[],
        evaluation__user_fraction=0.0,
    )
    assert load_federated(recipe, lambda _: None).roster.users == ("Zoë",)


@pytest.mark.parametrize("name", ["recipe.yaml", "plan.json", "metrics.jsonl", "evaluation.json"])
def test_an_edit_of_what_a_reader_is_shown_is_found(finished: FinishedRun, tmp_path: Path, name: str) -> None:  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    assert verify(run).ok
    (run / name).write_bytes((run / name).read_bytes() + b" ")
    verdict = verify(run)
    assert any(name in line for line in verdict.failed)
