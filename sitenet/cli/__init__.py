"""The command line, ``sitenet`` or ``python -m sitenet``."""
