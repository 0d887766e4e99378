"""Measures what is promised: `python -m bench [SECTION...]`."""
