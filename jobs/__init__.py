"""Entry points: each file parses its flags and makes one call into `pipelines`."""
