"""All that a privacy auditor must read: units, mechanisms, events, accounting, ledger, report.

Imports no other room and no torch. ``python -m privacy verify|report RUN`` needs numpy, scipy, dp-accounting and
cryptography alone.
"""
