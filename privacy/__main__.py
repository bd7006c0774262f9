"""``python -m privacy verify|report PATH``: the privacy officer's laptop, without torch and without data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from privacy.errors import CodedError
from privacy.report import build_report, render_text, verify


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all checks passed; 1: one failed or the ledger is broken; 2: usage."""
    parser = argparse.ArgumentParser(prog="python -m privacy", description=__doc__)
    parser.add_argument("verb", choices=["verify", "report"])
    parser.add_argument("path", type=Path, help="a run folder (or, for verify, a ledger file)")
    parser.add_argument("--head", help="a head hash known from elsewhere: shows that nothing was cut off")
    parser.add_argument("--signer", help="a public key, or its fingerprint, known from elsewhere")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options = parser.parse_args(arguments)
    try:
        return _verify(options) if options.verb == "verify" else _report(options)
    except CodedError as error:
        sys.stderr.write(error.diagnostics() + "\n")
        return 1


def _verify(options: argparse.Namespace) -> int:
    verdict = verify(options.path, options.head, options.signer)
    sys.stdout.write(json.dumps(verdict.to_json(), indent=2) + "\n" if options.json else verdict.to_text())
    return 0 if verdict.ok else 1


def _report(options: argparse.Namespace) -> int:
    report = build_report(options.path)
    sys.stdout.write(json.dumps(report.fields, indent=2) + "\n" if options.json else render_text(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
