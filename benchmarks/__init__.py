"""Ratios and accuracies, one command each: ``python -m benchmarks.NAME [--json]``. The last line printed is one JSON object."""
