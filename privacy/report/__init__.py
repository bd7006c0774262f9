"""Ledger -> report -> text and JSON; and the check that a stranger can run."""

from privacy.report.build import Report, build_report
from privacy.report.text import render_text
from privacy.report.verdict import Verdict
from privacy.report.verify import verify

__all__ = ["Report", "Verdict", "build_report", "render_text", "verify"]
