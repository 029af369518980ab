"""A student as an MLflow model; this file and `reddit_core` are copied into it, so it must import nothing else of ours.

MLflow calls `_load_pyfunc` with the weights' path: code and safetensors, no pickle.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reddit_core.sampler import enhance
from reddit_core.weights import UNetFile, decode_unet

MODULE = "student_model"


class StudentModel:
    """Enhances photographs; on a GPU where there is one."""

    def __init__(self, file: UNetFile) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.unet = file.unet.to(self.device).eval()
        self.schedule = file.schedule

    def predict(self, images: NDArray[np.uint8], params: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Enhanced images, uint8 [N, H, W, 3] like the input; one at a time, so memory does not grow with N.

        `params` holds `steps` (sampling steps) and `seed` (of the sampler's noise).
        """
        return np.stack([self._enhance(image, int(params["steps"]), int(params["seed"])) for image in images])

    def _enhance(self, image: NDArray[np.uint8], steps: int, seed: int) -> NDArray[np.uint8]:
        low = torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        result = enhance(self.unet, low, self.schedule, steps, seed)[0]
        pixels = ((result + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(1, 2, 0).cpu().numpy()


def _load_pyfunc(data_path: str) -> StudentModel:
    return StudentModel(decode_unet(Path(data_path).read_bytes()))
