"""Where the time of one call of the video UNet goes, by kind of operation, on a CPU with random weights.

    python scripts/profile_step.py --latents 8x12 --width 320

One window of driving frames behind its reference, both halves of guidance, Dynamics-Adapter and 16 image tokens.
`--plain` takes the formulas that calls with gradients take, which is what the work on memory layout replaced.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.unet import XDynaUNet

#: Operations by kind; the first kind with a word that an operation's name holds is its kind.
KINDS = {
    "attention, unfused": ("_attention_math", "aten::_softmax"),
    "attention, fused": ("_attention",),
    "convolutions": ("convolution", "slow_conv"),
    "matrix products": ("addmm", "::mm", "bmm", "mkl_linear", "baddbmm"),
    "norms": ("native_group_norm", "native_layer_norm", "var_mean", "aten::var", "aten::mean"),
    "copies": ("copy_", "::cat", "index_select", "::index", "repeat", "clone", "fill_", "::stack", "upsample"),
    "elementwise": ("silu", "gelu", "::add", "::mul", "::div", "::sub", "::exp", "addc", "rsqrt", "::sqrt"),
}
OTHER = "views and calls"


def kind_of(operation: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in operation for word in words)), OTHER)


def random_unet(width: int) -> XDynaUNet:
    """SD1.5's UNet, narrowed from 320 channels to `width`, with what an animation puts on it."""
    unet = XDynaUNet(block_out_channels=tuple(width * level for level in (1, 2, 4, 4)))
    parts: list[nn.Module] = [unet, DynamicsAdapter.from_unet(unet), ImagePromptAdapter.from_unet(unet)]
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        for weight in part.parameters():
            spread = 0.05 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.data.normal_(float(weight.ndim == 1), spread, generator=generator)
    for adapter in parts[1:]:
        adapter.attach(unet)  # type: ignore[operator]
    return unet.eval().requires_grad_(False)


def random_inputs(unet: XDynaUNet, size_hw: tuple[int, int], window: int) -> dict[str, Any]:
    """A call with two halves and the residuals of a ControlNet, of the shapes that the engine passes."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 1 + window, *size_hw, generator=generator)
    tokens = torch.randn(2, 77 + unet.num_image_tokens, unet.config.cross_attention_dim, generator=generator)
    widths = unet.config.block_out_channels
    shapes, (height, width) = [(widths[0], *size_hw)], size_hw
    for level, channels in enumerate(widths):
        shapes += [(channels, height, width)] * unet.config.layers_per_block
        if level < len(widths) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            shapes.append((channels, height, width))
    down = [torch.randn(1, shape[0], 1 + window, *shape[1:], generator=generator) for shape in shapes]
    mid = torch.randn(1, widths[-1], 1 + window, height, width, generator=generator)
    return {
        "sample": sample,
        "timestep": torch.tensor(500),
        "encoder_hidden_states": tokens,
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": mid,
    }


def profile_call(
    unet: XDynaUNet, inputs: dict[str, Any], runs: int, *, plain: bool = False
) -> tuple[dict[str, tuple[float, int, dict[str, float]]], int]:
    """For each kind: CPU seconds and operations of one call, and the seconds of each operation; numbers copied."""
    with torch.set_grad_enabled(plain):  # nothing wants a gradient: only the formulas are others
        unet(**inputs)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as measured:
            for _ in range(runs):
                unet(**inputs)
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[str, int] = defaultdict(int)
    for event in measured.key_averages():
        kind = kind_of(event.key)
        seconds[kind][event.key] += event.self_cpu_time_total / 1e6 / runs
        counts[kind] += event.count // runs
    # `cat` writes its result itself, of as many numbers as its inputs; those are a list, whose shapes are not recorded.
    copied = sum(math.prod(event.input_shapes[0]) for event in measured.events() if event.name == "aten::copy_")
    return {kind: (sum(found.values()), counts[kind], dict(found)) for kind, found in seconds.items()}, copied // runs


def print_table(kinds: dict[str, tuple[float, int, dict[str, float]]]) -> None:
    total = sum(seconds for seconds, _, _ in kinds.values())
    print("\n| kind | CPU s | share | operations | most of it |\n|---|---|---|---|---|")
    for kind, (seconds, count, found) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        most = sorted(found, key=found.__getitem__, reverse=True)[:3]
        names = ", ".join(f"`{name.removeprefix('aten::')}` {found[name]:.3f}" for name in most)
        print(f"| {kind} | {seconds:.3f} | {seconds / total:.1%} | {count} | {names} |")
    print(f"| all | {total:.3f} | | {sum(count for _, count, _ in kinds.values())} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", default="8x12", help="height x width of the latents")
    parser.add_argument("--width", type=int, default=320, help="channels of the first level; SD1.5 has 320")
    parser.add_argument("--window", type=int, default=16, help="driving frames")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="with the formulas that gradients need")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = (int(side) for side in args.latents.split("x"))
    unet = random_unet(args.width)
    inputs = random_inputs(unet, (height, width), args.window)
    print(
        f"torch {torch.__version__}, {args.threads} thread(s), latents {height}x{width}, width {args.width}, "
        f"1 + {args.window} frames, 2 halves, {'plain formulas' if args.plain else 'as an animation runs'}"
    )
    kinds, copied = profile_call(unet, inputs, args.runs, plain=args.plain)
    print_table(kinds)
    print(f"\nnumbers copied in a call, without joins: {copied / 1e6:.1f} million")


if __name__ == "__main__":
    main()
