"""Sums -> new parameters."""
