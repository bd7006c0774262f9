"""fedpref clean"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def clean(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Remove private data at rest: feature caches and kept messages. Ledgers and the release stay."""
    from fedpref.folder import RunFolder

    folder = RunFolder(run)
    folder.status()
    private = [name for kept in ("features.safetensors", "sealed.bin") for name in (kept, f".{kept}.part")]
    removed = [p for name in private for p in folder.node.parent.glob(f"*/{name}")]
    for path in removed:
        path.unlink()
    typer.echo(f"removed {len(removed)} files from {folder.node.parent}")
