"""The run folder: started, half-finished, finished, foreign, or of another version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpref.config import Recipe
from fedpref.errors import DiskError, RunFolderError
from fedpref.journal import write_durably
from fedpref.recipes import dump_recipe, read_recipe
from fedpref.version import __version__
from policy.registry import ObjectiveSpec

SCHEMA = "fedpref-run-1"


class RunFolder:
    """Paths and status of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger.jsonl"
        self.node = path / "nodes" / "local"
        self.node_ledger = self.node / "ledger.jsonl"
        self.sealed = self.node / "sealed.bin"
        self.members = self.node / "members.bin"
        self.aggregation = path / "aggregation.json"
        self.project = path / "project.jsonl"
        self.checkpoints = path / "checkpoints"
        self.release = path / "release"
        self.policy = path / "policy"
        self.metrics = path / "metrics.jsonl"
        self.policy_metrics = path / "policy_metrics.jsonl"
        self.recipe_file = path / "recipe.yaml"

    def status(self) -> dict[str, Any]:
        """Content of ``run.json``.

        Raises:
            RunFolderError: not a run folder, or of another version.
        """
        try:
            status = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise RunFolderError(
                f"{self.path}: is no run folder.", "It has no readable run.json.", "Give the folder of a started run."
            ) from None
        if not isinstance(status, dict) or status.get("schema") != SCHEMA:
            raise RunFolderError(
                f"{self.path}: was written by another version of fedpref.",
                f"Its schema is {status.get('schema') if isinstance(status, dict) else None!r}, this version reads {SCHEMA!r}.",
                "Use the version that wrote it, or start a new run folder.",
            )
        return status

    def recipe(self, objectives: Mapping[str, ObjectiveSpec] | None = None) -> Recipe:
        """The resolved recipe that the run was started with; an objective that was given as an object, again."""
        return read_recipe(self.recipe_file, objectives=objectives)

    def begin(self, recipe: Recipe, plan_digest: str, *, resume: bool) -> None:
        """Make the folder, or check that it may be resumed.

        Raises:
            RunFolderError: finished, half-finished without ``resume``, of another plan, foreign, or of another version.
            DiskError: it cannot be created, or its private part cannot be closed to others.
        """
        if self._never_begun():
            self._create(recipe, plan_digest)
            return
        status = self.status()
        if status["status"] == "finished":
            raise RunFolderError(
                f"{self.path}: this run is finished.",
                "A second run in the same folder would mix two sets of books.",
                f"See `fedpref report {self.path}`, or set output_dir=… for a new run.",
            )
        if not resume and self._nothing_spent():
            self._create(recipe, plan_digest)
            return
        if not resume:
            raise RunFolderError(
                f"{self.path}: this run is half-finished.",
                "It was interrupted; what it spent is in its ledger.",
                "Go on with --resume, or set output_dir=… for a new run.",
            )
        if status["plan_digest"] != plan_digest:
            raise RunFolderError(
                f"{self.path}: was started with another recipe.",
                "Parameters chosen after seeing releases would not be covered by its plan.",
                f"Resume with {self.recipe_file}, or set output_dir=… for a new run.",
            )
        self._make_private()

    def finish(self) -> None:
        """Mark the run as finished."""
        self._write_status({**self.status(), "status": "finished"})

    def has_books(self) -> bool:
        """True once a book was opened, which comes before anybody is trained on."""
        return self.ledger.exists() or any(self.node.glob("*.jsonl"))

    def _nothing_spent(self) -> bool:
        """True for a start that failed before any book was opened: it may be begun anew, with another recipe."""
        return not self.has_books() and not self.checkpoints.exists()

    def _never_begun(self) -> bool:
        """True if nothing is there, or only what a kill leaves before the first status: nothing was read or spent."""
        if not self.path.is_dir():
            return not self.path.exists()
        own_folders = {self.node, self.node.parent}
        own_files = {self.recipe_file, *(self.path / f".{name}.part" for name in ("recipe.yaml", "run.json"))}
        present = set(self.path.rglob("*"))
        return not present or (self.node in present and present <= own_folders | own_files)

    def _create(self, recipe: Recipe, plan_digest: str) -> None:
        self._make_private()
        write_durably(self.recipe_file, dump_recipe(recipe).encode())
        self._write_status({"schema": SCHEMA, "fedpref": __version__, "status": "started", "plan_digest": plan_digest})

    def _make_private(self) -> None:
        """The run's folder, and in it that of the nodes, which nobody else may enter: also if somebody opened it since."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.node.parent, self.node):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
        except OSError as error:
            raise DiskError(
                f"{self.path}: cannot be created.",
                f"{error.strerror or error}.",
                "Set output_dir=… to a place with room.",
            ) from None

    def _write_status(self, status: dict[str, Any]) -> None:
        write_durably(self.path / "run.json", (json.dumps(status, indent=2) + "\n").encode())
