"""Judging students honestly, and the paper's experiments."""
