"""Finished students as registered models, with their cards."""
