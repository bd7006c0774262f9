"""Preference data: described by a YAML, read in TRL's formats, checked, split, partitioned into clients."""
