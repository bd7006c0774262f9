"""``python -m fedpref`` is ``fedpref``."""

from fedpref.cli import main

main()
