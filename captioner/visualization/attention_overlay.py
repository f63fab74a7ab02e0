"""Where the model looked, laid over the picture: one formula for drawings, notebooks and reports.

In: attention weights (h, w) of a word over the grid, pixels. Out: how much light falls on each pixel, and the
picture in that light.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def attention_light(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Weights (h, w) at the size of a picture (width, height): (H, W) float32, 1 where they are highest.

    Smooth between the cells; the curve lifts middling weights, which a screen would show as black.
    """
    soft = Image.fromarray(np.asarray(weights, np.float32)).resize(size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(soft), 0, None)
    lifted: np.ndarray = (light / max(float(light.max()), 1e-9)) ** 0.8
    return lifted


def lit(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: full color where the weights (h, w) are highest, dark and gray where they are 0."""
    height, width = picture.shape[:2]
    light = attention_light(weights, (width, height))[..., None]  # (H, W, 1)
    colors = picture.astype(np.float32)
    gray = colors.mean(-1, keepdims=True)
    dark = 0.25 * (0.35 * colors + 0.65 * gray) + np.array([6, 9, 22], np.float32)
    warm = colors + 26 * light**2 * np.array([1.0, 0.75, 0.2], np.float32)
    return np.clip(light * warm + (1 - light) * dark, 0, 255).astype(np.uint8)
