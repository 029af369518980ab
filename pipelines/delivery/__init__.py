"""Measurements on their way to a tracking server; free of MLflow."""
