"""Is this machine fit? Each check says what is wrong and how to mend it. Needs no torch to start."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("fedpref", "reward", "policy", "privacy")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table; ``fix`` is empty where all is well."""

    name: str
    found: str
    fix: str = ""


def shared_folder() -> tuple[bool, str]:
    """Do the four packages lie in one folder? An unrelated package called `policy` exists on the package index."""
    folders = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        folders[name] = str(Path(spec.origin).parent.parent) if spec and spec.origin else "missing"
    return len(set(folders.values())) == 1, ", ".join(f"{k} in {v}" for k, v in folders.items())


def examine() -> Iterator[Check]:
    """All checks, in order."""
    for check in _CHECKS:
        yield check()


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", found, "" if fits else "use Python 3.11, 3.12 or 3.13")


def _folders() -> Check:
    one, where = shared_folder()
    fix = "" if one else "an unrelated package hides one of ours: pip uninstall it, or use a fresh environment"
    return Check("packages together", "yes" if one else where, fix)


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", str(error), "pip install -c constraints.txt torch")
    from reward.backbone import fastest_dtype

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Check(
        "torch", f"{torch.__version__} on {device}, {torch.get_num_threads()} threads, {fastest_dtype(device)}"
    )


def _accountant() -> Check:
    from privacy.accounting import pld_epsilon

    value = pld_epsilon(((1.0, 0.01, 1000),), 1e-5)
    right = abs(value - 1.828) < 0.01
    return Check("accountant", f"epsilon {value:.3f} (known: 1.828)", "" if right else "reinstall dp-accounting 0.6")


def _random() -> Check:
    from privacy.rng import SystemRandom

    words = SystemRandom().stream("doctor").words(4)
    return Check(
        "random numbers",
        "operating system's CSPRNG",
        "" if len(set(words.tolist())) == 4 else "do not use this machine",
    )


def _model() -> Check:
    from reward.embedded import NAME, PREFIX, model_folder

    folder = model_folder(PREFIX + NAME)
    found = (
        str(folder) if (folder / "config.json").exists() else "not fetched yet (`fedpref models get`, or the first run)"
    )
    return Check("embedded model", found)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Check(
        "disk here", f"{free:.1f} GB free", "" if free > 1 else "make room: a run and its model need about 1 GB"
    )


_CHECKS: tuple[Callable[[], Check], ...] = (_python, _folders, _torch, _accountant, _random, _model, _disk)
