"""Everything that imports MLflow; loaded only by processes that talk to a tracking server."""
