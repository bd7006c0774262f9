"""The command line: verbs, exit codes, errors that say what, why and what to do; nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

import fedpref
from fedpref.cli import app
from fedpref.recipes import find_recipe, list_recipes, read_recipe
from privacy.ledger import read_ledger
from privacy.report import verify
from tests.fedpref.conftest import FinishedRun, speak
from tests.tiny import votes, write_dataset, write_recipe

VERBS = ("run", "plan", "eval", "report", "verify", "clean", "doctor")
GROUPS = {
    "budget": ("show",),
    "recipes": ("ls", "show", "copy"),
    "data": ("ls", "check", "show", "map", "complete"),
    "models": ("get",),
    "keys": ("new", "show", "trust", "pinned"),
}
COMMANDS = [(), *((v,) for v in VERBS), *((g,) for g in GROUPS), *((g, v) for g, vs in GROUPS.items() for v in vs)]


def test_the_verbs_are_the_known_ones() -> None:
    command = typer.main.get_command(app)
    assert set(command.commands) == {*VERBS, *GROUPS}  # type: ignore[attr-defined]
    for group, verbs in GROUPS.items():
        assert set(command.commands[group].commands) == set(verbs)  # type: ignore[attr-defined]


def test_version_and_nothing_else() -> None:
    spoken = speak("--version")
    assert (spoken.code, spoken.out) == (0, f"fedpref {fedpref.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_verb_explains_itself(command: tuple[str, ...]) -> None:
    spoken = speak(*command, "--help")
    assert spoken.code == 0
    assert "Usage" in spoken.out
    assert len(spoken.out) > 100


def loaded_by(*commands: tuple[str, ...]) -> set[str]:
    """Modules that a fresh process has loaded once the commands have ended."""
    code = (
        "import json, sys\n"
        "from fedpref.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['fedpref', *arguments]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {"torch", "transformers", "datasets", "pyarrow", "dp_accounting", "scipy", "wandb", "peft", "trl"}


def test_help_and_recipes_load_nothing_heavy() -> None:
    assert not loaded_by(("--help",), ("run", "--help")) & (HEAVY | {"numpy"})
    assert not loaded_by(("recipes", "ls"), ("data", "ls")) & HEAVY


def test_plan_and_the_officers_verbs_load_no_torch_and_read_no_data(finished: FinishedRun) -> None:
    run = str(finished.path)
    loaded = loaded_by(("plan", f"{run}/recipe.yaml"), ("verify", run), ("report", run))
    assert not loaded & {"torch", "transformers", "datasets", "pyarrow"}
    assert "dp_accounting" in loaded


def test_recipes_ls_names_every_recipe_with_its_purpose() -> None:
    lines = speak("recipes", "ls").out.splitlines()
    assert len(lines) == len(list_recipes())
    assert any(line.startswith("quickstart ") and len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_recipes_show_prints_the_file() -> None:
    assert speak("recipes", "show", "quickstart").out == find_recipe("quickstart").read_text()


def test_recipes_copy_copies_and_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert speak("recipes", "copy", "quickstart").code == 0
    assert read_recipe(tmp_path / "quickstart.yaml") == read_recipe(find_recipe("quickstart"))
    (tmp_path / "quickstart.yaml").write_text("mine")
    for destination in ([], ["quickstart.yaml"], ["."], [str(tmp_path)]):
        # The name finds the local file first, so the shipped one is named by its folder.
        spoken = speak("recipes", "copy", "recipes/quickstart", *destination)
        assert spoken.code == 1
        assert spoken.err.startswith("error[FP504] ")
        assert "exists" in spoken.err
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"
    assert "next: fedpref plan other.yaml" in speak("recipes", "copy", "recipes/quickstart", "other.yaml").out


def test_data_ls_names_every_data_set_with_its_licence() -> None:
    out = speak("data", "ls").out
    assert "ukpconvarg1 " in out
    assert "CC-BY-4.0" in out
    assert "Apache-2.0" in out


NO_NOISE = ("privacy.target_epsilon=null", "privacy.noise_multiplier=0")  # nothing to calibrate, hence quick


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("plan", "quikstart"), "FP102", "Did you mean 'quickstart'"),
        (("plan", "quickstart", "privacy.epsilon=1"), "FP101", "unknown key 'privacy.epsilon'"),
        (("plan", "quickstart", "nonsense"), "FP101", "key.sub=value"),
        (("plan", "quickstart", "federation.min_clients_per_round=6"), "FP401", "No safe cohort"),
        (("plan", "quickstart", "datasets=[nowhere]", *NO_NOISE), "FP201", "No data set 'nowhere'"),
        (("run", "nowhere"), "FP102", "No recipe"),
        (("report", "no/such/folder"), "FP420", "ledger"),
        (("eval", "no/such/folder", "--data", "x"), "FP501", "is no run folder"),
        (("clean", "no/such/folder"), "FP501", "is no run folder"),
        (("models", "get", "embedded/gpt-9"), "FP302", "No embedded model"),
        (("recipes", "show", "nowhere"), "FP102", "No recipe"),
        (("data", "complete", "nowhere", "--out", "x.parquet", "--reason", "r"), "FP201", "No data set"),
    ],
)
def test_errors_say_what_why_and_what_to_do(arguments: tuple[str, ...], code: str, says: str) -> None:
    spoken = speak(*arguments)
    assert spoken.code == 1
    what, why, fix = spoken.err.rstrip("\n").split("\n")[-3:]
    assert what.startswith(f"error[{code}] ")
    assert why.startswith("  why: ")
    assert fix.startswith("  fix: ")
    assert says in spoken.err
    assert "Traceback" not in spoken.err
    assert spoken.out == ""


def test_a_python_that_is_too_old_is_told_before_anything_is_imported_that_it_cannot_read() -> None:
    """What it does import of ours is readable for it; the rest of the package, and what it needs, is not touched."""
    code = (
        "import sys; sys.version_info = (3, 10, 13, 'final', 0)\n"
        "before = set(sys.modules)\n"
        "try:\n    import fedpref.__main__; fedpref.__main__.main()\n"
        "except SystemExit as end:\n"
        "    loaded = sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names)\n"
        "    print(end.code, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("error[FP601] Python 3.10.13 is too old.\n  why: ")
    assert "\n  fix: " in done.stderr
    ours = ["fedpref", "fedpref.__main__", "fedpref.errors", "fedpref.version", "privacy", "privacy.errors"]
    assert done.stdout.strip() == f"1 {[*ours, 'reward', 'reward.errors']}"


def test_errors_are_json_where_json_was_asked_for() -> None:
    spoken = speak("plan", "quikstart", "--json")
    assert spoken.code == 1
    error = json.loads(spoken.out)["error"]
    assert set(error) == {"code", "what", "why", "fix"}
    assert error["code"] == "FP102"


@pytest.mark.parametrize("arguments", [("fly",), ("plan",), ("eval", "x"), ("verify", "x", "--wings")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert speak(*arguments).code == 2


def test_interrupted_is_exit_code_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedpref.api.run", interrupted)
    spoken = speak("run", str(write_recipe(tmp_path, Path("m"))))
    assert spoken.code == 130
    assert f"fedpref run {tmp_path}/run/recipe.yaml --resume" in spoken.err


def test_plan_as_json_is_the_plan(finished: FinishedRun) -> None:
    spoken = speak("plan", str(finished.path / "recipe.yaml"), "--json")
    plan = json.loads(spoken.out)
    assert plan == json.loads((finished.path / "plan.json").read_text())
    assert {row["adversary"] for row in plan["claim"]} == {"reader", "other_clients", "server"}
    assert plan["noise_multiplier"] == 1.5


def test_plan_as_text_names_unit_delta_and_adversary_beside_every_epsilon(finished: FinishedRun) -> None:
    out = speak("plan", str(finished.path / "recipe.yaml")).out
    assert "unit user, delta 1e-05" in out
    for who in ("reader of the release", "other clients", "honest-but-curious server"):
        assert who in out
    assert "none: trusted" in out
    assert "NOT PRIVATE" in out  # this recipe is seeded
    assert "the real number is secret" in out


def test_run_says_what_to_do_next(finished: FinishedRun) -> None:
    out = finished.spoken.out
    assert out.strip().startswith("NOT PRIVATE")
    for command in ("report", "verify", "eval"):
        assert f"fedpref {command} {finished.path}" in out


def test_run_names_the_worst_topic(finished: FinishedRun) -> None:
    seen = fedpref.Run(finished.path).evaluation["seen topics"]
    figures = seen["topics"][seen["worst_topic"]]
    line = f"  worst topic: {seen['worst_topic']}, {100 * figures['reward_accuracy']:.1f} % "
    assert [told.startswith(line) for told in finished.spoken.out.splitlines() if "worst" in told] == [True]


def test_run_again_is_refused(finished: FinishedRun) -> None:
    recipe = str(finished.path.parent / "recipe.yaml")
    for arguments in (("run", recipe), ("run", recipe, "--resume")):
        spoken = speak(*arguments)
        assert spoken.code == 1
        assert "error[FP501]" in spoken.err
        assert "this run is finished" in spoken.err


def test_report_is_composed_from_the_ledgers(finished: FinishedRun) -> None:
    spoken = speak("report", str(finished.path))
    assert spoken.code == 0
    assert spoken.out == (finished.path / "report.txt").read_text()
    assert json.loads(speak("report", str(finished.path), "--json").out) == json.loads(
        (finished.path / "report.json").read_text()
    )


def test_verify_ends_with_0_for_intact_books_and_1_otherwise(finished: FinishedRun, tmp_path: Path) -> None:
    import shutil

    spoken = speak("verify", str(finished.path))
    assert spoken.code == 0
    assert spoken.out.endswith("verified\n")
    head = read_ledger(finished.path / "ledger.jsonl").head
    assert speak("verify", str(finished.path / "ledger.jsonl"), "--head", head).code == 0
    assert speak("verify", str(finished.path), "--head", "0" * 64).code == 1
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_text("".join(lines[:-2]))  # rolled back by one round
    cut = speak("verify", str(copy), "--json")
    assert cut.code == 1
    assert json.loads(cut.out)["ok"] is False
    (copy / "ledger.jsonl").write_text("".join(lines).replace('"round":1}', '"round":2}', 1))
    edited = speak("verify", str(copy))
    assert edited.code == 1
    assert "NOT VERIFIED" in edited.out
    assert speak("verify", str(tmp_path / "nowhere")).code == 1


def test_a_run_keeps_to_its_target(tmp_path: Path, tiny_model: Path) -> None:
    privacy = {"target_epsilon": 3.0, "sample_rate": 1.0, "max_grad_norm": 0.5}
    path = write_recipe(tmp_path, tiny_model, privacy=privacy)
    spoken = speak("run", str(path), "federation.num_rounds=2")
    assert spoken.code == 0, spoken.err
    assert "epsilon = " in spoken.out
    verdict = verify(tmp_path / "run")
    assert verdict.ok
    assert 2.0 < (verdict.epsilons["reader"] or 0) <= 3.0
    assert verdict.epsilons["server"] is None


def test_a_person_in_two_clients_stops_the_run_with_a_code(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{**row, "site": f"s{i % 2}"} for i, row in enumerate(votes())]
    source = write_dataset(tmp_path, rows)
    fields = yaml.safe_load(source.read_text())
    fields["fields"]["client"] = "site"
    source.write_text(yaml.safe_dump(fields))
    recipe = write_recipe(tmp_path, tiny_model, datasets=[str(source)], federation__partition={"by": "column"})
    spoken = speak("run", str(recipe))
    assert spoken.code == 1
    assert "error[FP103]" in spoken.err


@pytest.mark.slow
def test_a_real_kill_and_a_resumed_run_end_as_the_unbroken_one(tmp_path: Path, tiny_model: Path) -> None:
    """SIGKILL of `fedpref run` in the middle of its rounds; the released head is bit-equal to the unbroken run's."""
    rounds = 300
    weights, epsilons = [], []
    for name, killed in (("unbroken", False), ("killed", True)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_recipe(
            folder,
            tiny_model,
            federation__num_rounds=rounds,
            privacy={"noise_multiplier": 8, "rng": "seeded", "sample_rate": 0.3, "max_grad_norm": 0.5},
        )
        command = [sys.executable, "-m", "fedpref", "run", str(recipe)]
        if killed:
            with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
                assert process.stderr is not None
                for line in process.stderr:
                    if line.startswith("round 90/"):
                        os.kill(process.pid, signal.SIGKILL)
                        break
                process.stderr.read()
            assert process.returncode == -signal.SIGKILL
            assert fedpref.Run(folder / "run").status["status"] == "started"
            command.append("--resume")
        subprocess.run(command, check=True, capture_output=True)
        assert verify(folder / "run").ok
        view = read_ledger(folder / "run/ledger.jsonl")
        assert [r.round for r in view.reservations] == list(range(1, rounds + 1))
        weights.append((folder / "run/release/reward/reward_head.safetensors").read_bytes())
        epsilons.append(json.loads((folder / "run/report.json").read_text())["claim"])
    assert weights[0] == weights[1]
    assert epsilons[0] == epsilons[1]
