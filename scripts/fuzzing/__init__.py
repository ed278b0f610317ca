"""Damaged data for `scripts/fuzz.py`: small good data sets, and one function per kind of damage."""
