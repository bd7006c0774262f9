"""fedpref keys new | show | trust | pinned"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Identity keys for secure aggregation, pinned out of band.", no_args_is_help=True)


@app.command()
def new(path: Annotated[Path, typer.Argument(help="File to write, for example identity.json.")]) -> None:
    """Make an identity. The file is yours alone; give others the public key and compare fingerprints by another way."""
    from fedpref.keyring import new_identity

    _show(new_identity(path).public)
    typer.echo(f"written to {path} (mode 0600)")


@app.command()
def show(path: Annotated[Path, typer.Argument(help="An identity file.")]) -> None:
    """Public key and fingerprint of an identity."""
    from fedpref.keyring import public_key_of

    _show(public_key_of(path))


@app.command()
def pinned(path: Annotated[Path, typer.Argument(help="A file of trusted keys.")]) -> None:
    """Whose messages are believed: the server and the clients, with their fingerprints."""
    from fedpref.keyring import SERVER, read_pinned

    keys = read_pinned(path)
    for who, public in ((SERVER, keys.server), *sorted(keys.clients.items())):
        typer.echo(f"{who if who == SERVER else f'client {who}'}:")
        _show(public)


@app.command()
def trust(
    path: Annotated[Path, typer.Argument(help="File of trusted keys, for example trusted.json; made if need be.")],
    who: Annotated[str, typer.Argument(help="`server`, or a client's number.")],
    public_key: Annotated[str, typer.Argument(help="64 hexadecimal digits from `fedpref keys show`.")],
) -> None:
    """Pin the key of the server or of a client. A key that is pinned is never replaced silently."""
    from fedpref.keyring import trust as pin

    typer.echo(f"{who}: {pin(path, who, public_key)} pinned in {path}; compare it with its owner by another way")


def _show(public: bytes) -> None:
    from privacy.secagg.keys import fingerprint

    typer.echo(f"public key   {public.hex()}\nfingerprint  {fingerprint(public)}")
