"""One training loop, from records to a teacher or to students."""
