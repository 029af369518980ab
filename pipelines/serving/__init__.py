"""A student as an HTTP service on Ray Serve."""
