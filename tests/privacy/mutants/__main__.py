"""``python -m tests.privacy.mutants``: plant every known defect, run its killers, print the table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.privacy.mutants.plants import MUTANTS, Mutant

ROOT = Path(__file__).parents[3]
FAILED = 1  # pytest: tests were collected and run, and some failed


def killers_end_with(killers: tuple[str, ...], mutant: str | None) -> int:
    """Exit code of pytest over these tests, in a process of its own, with a mutant planted or none."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *killers]
    environment = dict(os.environ)
    if mutant is not None:
        command += ["-x", "-p", "tests.privacy.mutants.plugin"]
        environment["FEDPREF_MUTANT"] = mutant
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode


def killed(mutant: Mutant) -> bool:
    """True if its killers ran and failed."""
    return killers_end_with(mutant.killers, mutant.name) == FAILED


def main() -> int:
    """0 if the killers pass without a mutant, and every planted mutant is killed."""
    every = tuple(sorted({killer for mutant in MUTANTS for killer in mutant.killers}))
    if killers_end_with(every, None) != 0:
        sys.stdout.write("the killers fail without any mutant: mend the tests first\n")
        return 1
    survived = 0
    for mutant in MUTANTS:
        if mutant.plant is None:
            fate, by = "n/a", mutant.why_not
        else:
            dead = killed(mutant)
            survived += not dead
            fate, by = ("killed" if dead else "SURVIVED"), ", ".join(k.split("::")[-1] for k in mutant.killers)
        sys.stdout.write(f"{fate:<9} {mutant.defect}\n            {'by' if fate != 'n/a' else 'because'} {by}\n")
        sys.stdout.flush()
    planted = sum(mutant.plant is not None for mutant in MUTANTS)
    sys.stdout.write(f"{planted - survived} of {planted} planted mutants killed\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
