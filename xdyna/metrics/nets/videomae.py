"""VideoMAE V2 (Wang et al. 2023), the network of the content-debiased FVD (Ge et al. 2024), in transformers' class.

cd-FVD reads its giant, fine-tuned on Something-Something V2, after the mean over all tokens and the last norm. Pictures
go in as 0..1, without the usual mean and deviation: so does the authors' code, and their figures depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.metrics.nets.files import below, filled, read_tensors
from xdyna.metrics.nets.i3d import fitted

#: What the file does not tell: frames, side in pixels, channels of a head, epsilon of the norms.
NUM_FRAMES, SIDE_PX, HEAD_WIDTH, NORM_EPS = 16, 224, 88, 1e-6

#: Names in the published file -> transformers' names, inside a block and outside.
BLOCK_NAMES = {
    "norm1.weight": "layernorm_before.weight", "norm1.bias": "layernorm_before.bias",
    "norm2.weight": "layernorm_after.weight", "norm2.bias": "layernorm_after.bias",
    "attn.q_bias": "attention.attention.query.bias", "attn.v_bias": "attention.attention.value.bias",
    "attn.proj.weight": "attention.output.dense.weight", "attn.proj.bias": "attention.output.dense.bias",
    "mlp.fc1.weight": "intermediate.dense.weight", "mlp.fc1.bias": "intermediate.dense.bias",
    "mlp.fc2.weight": "output.dense.weight", "mlp.fc2.bias": "output.dense.bias",
}  # fmt: skip
OUTER_NAMES = {
    "patch_embed.proj.weight": "model.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "model.embeddings.patch_embeddings.projection.bias",
    "fc_norm.weight": "norm.weight",
    "fc_norm.bias": "norm.bias",
}


class VideoMae(nn.Module):
    """Features of clips.

    Args:
        config: transformers' `VideoMAEConfig`.
    """

    def __init__(self, config: Any) -> None:
        from transformers import VideoMAEModel

        super().__init__()
        self.num_frames: int = config.num_frames
        self.side_px: int = config.image_size
        self.model = VideoMAEModel(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, clips: Tensor) -> Tensor:
        """float [N, 3, T, H, W] in 0..1, T as many as the network takes, any size -> [N, D]."""
        frames = fitted(clips, self.side_px).transpose(1, 2)
        tokens: Tensor = self.model(frames).last_hidden_state
        normed: Tensor = self.norm(tokens.mean(1))
        return normed


def load_videomae(path: Path) -> VideoMae:
    """The network from the file of its authors; its size is read from the shapes.

    Raises:
        UserError: the file holds something else.
    """
    from transformers import VideoMAEConfig

    tensors = below(read_tensors(path), "patch_embed.proj.weight", path)
    patches = tensors["patch_embed.proj.weight"]  # [width, 3, frames per tube, side, side]
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    if patches.ndim != 5 or not depth or "fc_norm.weight" not in tensors:
        raise UserError(f"{path}: not a fine-tuned VideoMAE V2 (it has no fc_norm); wanted the file that cd-FVD takes")
    width = patches.shape[0]
    config = VideoMAEConfig(
        image_size=SIDE_PX,
        patch_size=patches.shape[-1],
        num_frames=NUM_FRAMES,
        tubelet_size=patches.shape[2],
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        intermediate_size=tensors["blocks.0.mlp.fc1.bias"].shape[0],
        layer_norm_eps=NORM_EPS,
        use_mean_pooling=True,
        attn_implementation="sdpa",
    )
    return filled(lambda: VideoMae(config), dict(renamed(tensors)), path)


def renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The published file's tensors under transformers' names; the classes (`head`) are left aside."""
    for key, tensor in tensors.items():
        if key in OUTER_NAMES:
            yield OUTER_NAMES[key], tensor
        elif key.startswith("blocks."):
            _, number, name = key.split(".", 2)
            layer = f"model.encoder.layer.{number}"
            if name == "attn.qkv.weight":
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    yield f"{layer}.attention.attention.{part}.weight", piece
            elif name in BLOCK_NAMES:
                yield f"{layer}.{BLOCK_NAMES[name]}", tensor
