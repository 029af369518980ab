"""Sweeps over the refinement and loss weights with Ray Tune."""
