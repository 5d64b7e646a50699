"""Plans of `xdyna animate --vram` at SD1.5 size, 896x512 pixels, float16, counted without a GPU and without weights.

    python scripts/count_memory.py --vram 8 12 24 --frames 192 2000 20000

Random networks of the official model's sizes: both ControlNets, Dynamics-Adapter, image prompt, text and image encoder.
Windows of 16 frames with 4 shared, both halves of guidance.
"""

from __future__ import annotations

import argparse

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from xdyna.infer.bench.models import empty_model
from xdyna.infer.engine.memory import Shapes, Work
from xdyna.infer.engine.plan import GIB, fits, make_plan
from xdyna.infer.engine.predict import DEFAULT_FEATURES_BYTES
from xdyna.pipeline import XDynaPipeline


def official_shapes(dtype: torch.dtype) -> XDynaPipeline:
    """A pipeline of the official model's sizes on the meta device."""
    pipe = empty_model("random-sd15")
    with torch.device("meta"):
        pipe.register_modules(
            text_encoder=CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ),
            image_encoder=CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16,
                    patch_size=14, projection_dim=1024,
                )
            ),
        )  # fmt: skip
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, dtype)  # past diffusers' warning, which lists no modules
    return pipe


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vram", type=float, nargs="+", default=[8, 12, 24])
    parser.add_argument("--frames", type=int, nargs="+", default=[192, 2000, 20000])
    parser.add_argument("--size", type=int, nargs=2, default=[896, 512], metavar=("W", "H"))
    args = parser.parse_args()
    shapes = Shapes(official_shapes(torch.float16))
    print(f"weights: {sum(shapes.weights.values()) / GIB:.2f} GiB")
    for vram in args.vram:
        for number in args.frames:
            work = Work(tuple(args.size), number, 16, 4)
            plan = make_plan(
                shapes, work, torch.device("cuda"), budget=int(vram * GIB), features_bytes=DEFAULT_FEATURES_BYTES
            )
            print(f"--vram {vram:g}, {number} frames: {plan.line()}{'' if fits(plan) else ' DOES NOT FIT'}", flush=True)


if __name__ == "__main__":
    main()
