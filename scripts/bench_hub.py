#!/usr/bin/env python3
"""What encoders made of KerasHub's backbones cost: the table of README.md.

    python scripts/bench_hub.py [NAME …]     rows of BACKBONES; none: all of them

Each is built as its preset is, with weights drawn at random, which costs the same, so nothing is fetched.
Printed: pixels, cells and channels, the size of the weights, and the processor time of one picture through
`Encoder.encode`, PICTURES at a time, the least of ROUNDS rounds: other work on the machine only adds to it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PICTURES, ROUNDS, SIZE = 8, 4, 224
_VIT = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768}
_DINO = {"patch_size": 14, "num_layers": 12, "position_embedding_shape": (518, 518, 3)}
# Preset: its class in keras_hub.models, and the settings that the preset has.
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet_50_imagenet": (
        "ResNetBackbone",
        {
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 128, 256, 512],
            "stackwise_num_blocks": [3, 4, 6, 3],
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": "bottleneck_block",
        },
    ),
    "dinov2_small": (
        "DINOV2Backbone",
        {**_DINO, "hidden_dim": 384, "num_heads": 6, "intermediate_dim": 1536},
    ),
    "dinov2_base": (
        "DINOV2Backbone",
        {**_DINO, "hidden_dim": 768, "num_heads": 12, "intermediate_dim": 3072},
    ),
    "vit_base_patch16_224_imagenet": ("ViTBackbone", {**_VIT, "patch_size": 16, "mlp_dim": 3072}),
    "siglip_base_patch16_224": ("SigLIPVisionEncoder", {**_VIT, "patch_size": 16, "intermediate_dim": 3072}),
}
COMPARED = "mobilenet_v2"


def main(names: list[str]) -> int:
    """Prints a row for each encoder."""
    unknown = [name for name in names if name not in BACKBONES]
    if unknown:
        print(f"error: {unknown[0]}: expected some of {', '.join(BACKBONES)}", file=sys.stderr)
        return 2
    print("| `encoder.name` | pixels | cells | channels | weights, MB | processor ms a picture |")
    print("|---|---|---|---|---|---|")
    for name in [COMPARED, *(names or BACKBONES)]:
        encoder = built(name)
        megabytes = sum(math.prod(variable.shape) for variable in encoder.variables) * 4 / 1e6
        height, width = encoder.grid
        print(
            f"| `{name if name == COMPARED else 'hub:' + name}` | {encoder.size[0]} | {height} x {width} | "
            f"{encoder.channels} | {megabytes:.0f} | {1000 * seconds(encoder):.0f} |",
            flush=True,
        )
    return 0


def built(name: str) -> Any:
    """The encoder of a row."""
    import keras
    import keras_hub

    from captioner.models.encoder import ENCODERS, Encoder
    from captioner.models.graph_rewrite import foldable, rewrite
    from captioner.models.hub_backbones import hub_spec

    if name == COMPARED:
        spec = ENCODERS[name]
    else:
        kind, settings = BACKBONES[name]
        backbone = getattr(keras_hub.models, kind)(image_shape=(SIZE, SIZE, 3), **settings)
        architecture = {
            "backbone": kind,
            "part": "",
            "config": keras.saving.serialize_keras_object(backbone)["config"],
            "size": SIZE,
            "scale": [1 / 127.5] * 3,
            "offset": [-1.0] * 3,
        }
        spec = hub_spec(f"hub:{name}", architecture)
    bare = spec.build(None, SIZE)
    # As trained weights are taken: batch normalization folded into the convolutions.
    model = rewrite(bare, preprocessing=spec.preprocessing, folded=foldable(bare))
    return Encoder(spec, model, size=SIZE)


def seconds(encoder: Any) -> float:
    """Processor time of one picture."""
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, *encoder.size, 3), np.uint8)
    encoder.encode(pictures)  # traced and warm
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        encoder.encode(pictures)
        taken.append((time.process_time() - began) / PICTURES)
    return min(taken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
