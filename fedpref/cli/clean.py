"""fedpref clean"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpref.errors import RunFolderError


def clean(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Remove private data at rest: feature caches, kept messages and labels. Ledgers and the release stay."""
    from fedpref.folder import RunFolder

    folder = RunFolder(run)
    if folder.status()["status"] != "finished":
        raise RunFolderError(
            f"{run}: this run is half-finished.",
            "Its kept messages are what a resumed round sends again.",
            f"Finish it first: fedpref run {folder.recipe_file} --resume",
        )
    private = [
        name
        for kept in (
            "features.safetensors",
            "sealed.bin",
            "members.bin",
            "evaluation.bin",
            "evaluation-members.bin",
            "labels.bin",
        )
        for name in (kept, f".{kept}.part")
    ]
    removed = [p for name in private for p in folder.node.parent.glob(f"*/{name}")]
    for path in removed:
        path.unlink()
    typer.echo(f"removed {len(removed)} files from {folder.node.parent}")
