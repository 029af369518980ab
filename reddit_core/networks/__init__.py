"""The networks that a teacher or student can be."""
