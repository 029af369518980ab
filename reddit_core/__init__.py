"""The method of ReDDiT (arXiv 2410.12346) in torch, with numpy, kornia, safetensors and jaxtyping.

No Ray, MLflow, file system, environment variable or default device is used here. Images are `[B, 3, H, W]` in [-1, 1]
unless a name ends in `_unit` ([0, 1]). Where a function takes a noisy image, the low-light image is `low=`, by keyword.
"""
