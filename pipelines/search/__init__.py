"""Ray Tune over the reflectance and loss weights."""
