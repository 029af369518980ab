"""The science of ReDDiT (arXiv 2410.12346): torch, numpy and kornia only.

Nothing here knows Ray, MLflow, files, the environment or a default device. Images are
`[B, 3, H, W]` in [-1, 1] unless a name ends in `_unit` ([0, 1]).
"""
