"""A student as an MLflow model; this file and `reddit_core` are copied into it, so it must import nothing else of ours.

MLflow calls `_load_pyfunc` with the weights' path: code and safetensors, no pickle.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reddit_core.student import Student
from reddit_core.weights import NetworkFile, decode_network

MODULE = "student_model"
# Whole numbers, and one that is not.
PARAMS, TONE = ("steps", "seed", "tile", "overlap"), ("brightness", "contrast")


class StudentModel:
    """Enhances photographs as the enhance job does, large ones in tiles; on a GPU if there is one."""

    def __init__(self, file: NetworkFile) -> None:
        self.student = Student(file, device="cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, images: NDArray[np.uint8], params: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Enhanced images, uint8 [N, H, W, 3] like the input; one at a time, so memory does not grow with N.

        `params` holds `steps` (sampling steps), `seed` (of the sampler's noise), `tile` and `overlap` (in pixels; a
        tile of 0 takes tiles for large images only), and `brightness` and `contrast` (mean luma of every result in
        (0, 1), and its standard deviation; 0 takes the weights' own).
        """
        settings: dict[str, Any] = {name: int(params[name]) for name in PARAMS}
        settings |= {name: float(params[name]) or None for name in TONE}
        return np.stack([self.student.enhance(np.asarray(image), **settings) for image in images])


def _load_pyfunc(data_path: str) -> StudentModel:
    return StudentModel(decode_network(Path(data_path).read_bytes()))
