"""Frozen dataclasses from which the command lines are made, and their presets."""
