"""What a checkpoint's shapes say about its model, and what only a config can say (heads, groups)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from xdyna.errors import UserError, near_matches

Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, Any]

#: The official model, where shapes are silent. Motion modules always have 8 heads and 32 groups there.
UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": 64,
    "norm_num_groups": 32,
    "num_attention_heads": 8,
    "motion_num_attention_heads": 8,
    "motion_max_seq_length": 24,
    "motion_norm_num_groups": 32,
    "pool_group_norm": True,
    "reference_timestep": "same",
    "num_text_tokens": 77,
}
CONTROLNET_DEFAULTS: dict[str, Any] = {"norm_num_groups": 32, "attention_head_dim": 8}
RESAMPLER_DEFAULTS: dict[str, Any] = {"dim_head": 64}

#: Official and diffusers' words for the settings of `XDynaUNet` (left: theirs).
UNET_WORDS = {"attention_head_dim": "num_attention_heads"}
MOTION_WORDS = {
    "num_attention_heads": "motion_num_attention_heads",
    "temporal_position_encoding_max_len": "motion_max_seq_length",
}
RESAMPLER_WORDS = {
    "dim": "hidden_dims", "embedding_dim": "embed_dims", "output_dim": "output_dims", "ff_mult": "ffn_ratio",
}  # fmt: skip
#: Settings of the official and of SD1.5's UNet for which `XDynaUNet` knows one value.
UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu", "center_input_sample": False, "class_embed_type": None, "downsample_padding": 1,
    "dual_cross_attention": False, "flip_sin_to_cos": True, "freq_shift": 0, "fuse_first_frame": False,
    "mid_block_scale_factor": 1, "mid_block_type": ("UNetMidBlock3DCrossAttn", "UNetMidBlock2DCrossAttn"),
    "motion_module_decoder_only": False, "motion_module_mid_block": False, "motion_module_type": "Vanilla",
    "norm_eps": 1e-5, "num_class_embeds": None, "only_cross_attention": False, "resnet_time_scale_shift": "default",
    "unet_use_cross_frame_attention": "mixed_cross", "unet_use_ipadapter": True, "unet_use_temporal_attention": False,
    "upcast_attention": False, "use_input_concat": False, "use_linear_projection": False, "use_motion_module": True,
    "use_reference_image_cfg": False,
}  # fmt: skip
MOTION_FIXED: dict[str, Any] = {
    "attention_block_types": ["Temporal_Self", "Temporal_Self"], "cross_id": True, "num_transformer_block": 1,
    "temporal_attention_dim_div": 1, "temporal_position_encoding": True,
}  # fmt: skip
#: Official settings that change nothing once the weights are loaded.
UNET_IDLE = {"cfg_ratio", "motion_module_resolutions", "_use_default_values"}
MOTION_IDLE = {"zero_initialize"}
#: Official and SD1.5 block names end in 3D or 2D, ours in Motion.
BLOCK_SUFFIXES = ("3D", "2D")

_UNET_KEYS = {
    *UNET_DEFAULTS, "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "cross_attention_dim",
}  # fmt: skip
_RESAMPLER_KEYS = {"embed_dims", "output_dims", "hidden_dims", "depth", "dim_head", "heads", "num_queries", "ffn_ratio"}


def unet_config(shapes: Shapes, *settings: Settings) -> dict[str, Any]:
    """Arguments of `XDynaUNet`.

    Args:
        shapes: shape of every known official UNet key.
        *settings: configs in our words or the official ones, later ones winning; keys of other models are ignored
            here (`check_settings` refuses them).
    Raises:
        UserError: the shapes are not those of such a UNet.
    """
    need(shapes, "the UNet", "conv_in.weight", "conv_out.weight")
    levels = count(shapes, "down_blocks")
    found: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": _widths(shapes, levels),
        "layers_per_block": count(shapes, "down_blocks.0.resnets"),
        "down_block_types": [_block_type(shapes, "down_blocks", i, "Down") for i in range(levels)],
        "up_block_types": [_block_type(shapes, "up_blocks", i, "Up") for i in range(count(shapes, "up_blocks"))],
        "cross_attention_dim": _cross_attention_dim(shapes),
    }
    positions = [shape[1] for key, shape in shapes.items() if key.endswith("pos_encoder.pe")]
    if positions:
        found["motion_max_seq_length"] = positions[0]
    given: dict[str, Any] = {}
    for setting in settings:
        given |= our_unet_words(setting)
    merged = {**UNET_DEFAULTS, **found, **{key: value for key, value in given.items() if key in _UNET_KEYS}}
    merged["down_block_types"] = [_our_block_name(name) for name in merged["down_block_types"]]
    merged["up_block_types"] = [_our_block_name(name) for name in merged["up_block_types"]]
    return merged


def controlnet_config(shapes: Shapes, *settings: Settings) -> dict[str, Any]:
    """Arguments of diffusers' `ControlNetModel` (later settings win).

    Raises:
        UserError: the shapes are not those of a ControlNet.
    """
    need(shapes, "the ControlNet", "conv_in.weight", "controlnet_cond_embedding.conv_in.weight")
    levels = count(shapes, "down_blocks")
    condition = "controlnet_cond_embedding"
    steps = count(shapes, f"{condition}.blocks") // 2
    found = {
        "in_channels": shapes["conv_in.weight"][1],
        "conditioning_channels": shapes[f"{condition}.conv_in.weight"][1],
        "block_out_channels": _widths(shapes, levels),
        "layers_per_block": count(shapes, "down_blocks.0.resnets"),
        "down_block_types": [
            "CrossAttnDownBlock2D" if f"down_blocks.{i}.attentions.0.norm.weight" in shapes else "DownBlock2D"
            for i in range(levels)
        ],
        "cross_attention_dim": _cross_attention_dim(shapes),
        "conditioning_embedding_out_channels": [
            shapes[f"{condition}.conv_in.weight"][0],
            *(shapes[f"{condition}.blocks.{2 * i + 1}.weight"][0] for i in range(steps)),
        ],
    }
    merged = {**CONTROLNET_DEFAULTS, **found}
    for setting in settings:
        merged |= setting
    return merged


def resampler_config(shapes: Shapes, *settings: Settings) -> dict[str, Any]:
    """Arguments of diffusers' `IPAdapterPlusImageProjection`; the number of heads follows from a head's width.

    Raises:
        UserError: the shapes are not those of a Resampler, or heads and width do not fit them.
    """
    need(shapes, "the Resampler", "latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight")
    inner, hidden = shapes["layers.0.0.to_q.weight"]
    found: dict[str, Any] = {
        "embed_dims": shapes["proj_in.weight"][1],
        "output_dims": shapes["proj_out.weight"][0],
        "hidden_dims": hidden,
        "depth": count(shapes, "layers"),
        "num_queries": shapes["latents"][1],
        "ffn_ratio": shapes["layers.0.1.1.weight"][0] // hidden,
    }
    given: dict[str, Any] = {}
    for setting in settings:
        given |= {RESAMPLER_WORDS.get(key, key): value for key, value in setting.items()}
    dim_head = given.get("dim_head") or (
        inner // given["heads"] if given.get("heads") else RESAMPLER_DEFAULTS["dim_head"]
    )
    heads = given.get("heads") or inner // dim_head
    if dim_head * heads != inner:
        raise UserError(
            f"image_prompt: {heads} heads of width {dim_head} make {dim_head * heads}, the Resampler's attention is "
            f"{inner} wide; give heads or dim_head in the config's image_prompt section"
        )
    return {**found, **given, "dim_head": dim_head, "heads": heads}


def our_unet_words(setting: Settings) -> dict[str, Any]:
    """A UNet config in our words; the official `motion_module_kwargs` is unfolded.

    Raises:
        UserError: the config asks for something that `XDynaUNet` is not.
    """
    motion = setting.get("motion_module_kwargs") or {}
    for given, fixed in ((setting, UNET_FIXED), (motion, MOTION_FIXED)):
        for key in given.keys() & fixed.keys():
            known = fixed[key] if isinstance(fixed[key], tuple) else (fixed[key],)
            if given[key] not in known:
                raise UserError(f"unet: {key} is {given[key]!r}; X-Dyna's UNet has {' or '.join(map(repr, known))}")
    out = {MOTION_WORDS[key]: value for key, value in motion.items() if key in MOTION_WORDS}
    if "use_inflated_groupnorm" in setting:  # upstream's word for a norm over each frame
        out["pool_group_norm"] = not setting["use_inflated_groupnorm"]
    return {**out, **{UNET_WORDS.get(key, key): value for key, value in setting.items()}}


def check_settings(settings: Mapping[str, Settings], origin: str) -> None:
    """Refuse sections and keys of a user's config that nothing would read.

    Raises:
        UserError: naming `origin`, the key and the near ones.
    """
    known: dict[str, set[str]] = {
        "unet": {*_UNET_KEYS, *UNET_WORDS, *UNET_FIXED, *UNET_IDLE, "motion_module_kwargs", "use_inflated_groupnorm"},
        "image_prompt": {*_RESAMPLER_KEYS, *RESAMPLER_WORDS},
        "pose_controlnet": _controlnet_keys(),
        "face_controlnet": _controlnet_keys(),
    }
    for section, setting in settings.items():
        if section not in known:
            raise UserError(f"{origin}: unknown section {section!r}{near_matches(section, known)}")
        if not isinstance(setting, Mapping):
            raise UserError(f"{origin}: section {section} is {setting!r}; wanted KEY: VALUE lines")
        for key in setting:
            if key not in known[section]:
                raise UserError(f"{origin}: unknown key {section}.{key}{near_matches(key, known[section])}")
        for key in setting.get("motion_module_kwargs") or {}:
            if key not in (motion := {*MOTION_WORDS, *MOTION_FIXED, *MOTION_IDLE}):
                raise UserError(
                    f"{origin}: unknown key {section}.motion_module_kwargs.{key}{near_matches(key, motion)}"
                )


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children `prefix` has."""
    start = prefix + "."
    numbers = {key[len(start) :].partition(".")[0] for key in shapes if key.startswith(start)}
    return max((int(number) for number in numbers if number.isdigit()), default=-1) + 1


class WrongTensorsError(UserError):
    """The tensors are obviously of something else; whoever knows the files puts their names in front."""


def need(shapes: Shapes, what: str, *keys: str) -> None:
    """Refuse tensors that are obviously of something else."""
    for key in keys:
        if key not in shapes:
            some = ", ".join(sorted(shapes)[:3]) or "nothing"
            raise WrongTensorsError(
                f"wanted {what}, which has {key}; got {len(shapes)} tensors of something else: {some} .."
            )


def _controlnet_keys() -> set[str]:
    from diffusers import ControlNetModel

    return set(inspect.signature(ControlNetModel.__init__).parameters) - {"self"}


def _widths(shapes: Shapes, levels: int) -> list[int]:
    keys = [f"down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    need(shapes, "widths of the levels", "down_blocks.0.resnets.0.conv1.weight", *keys)
    return [shapes[key][0] for key in keys]


def _block_type(shapes: Shapes, side: str, index: int, word: str) -> str:
    attends = any(key.startswith(f"{side}.{index}.attentions.") for key in shapes)
    return f"{'CrossAttn' if attends else ''}{word}BlockMotion"


def _our_block_name(name: str) -> str:
    for suffix in BLOCK_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix) + "Motion"
    return name


def _cross_attention_dim(shapes: Shapes) -> int:
    for key, shape in shapes.items():
        if key.endswith(".attn2.to_k.weight") and ".attentions." in key:
            return shape[1]
    raise UserError("no cross-attention (attn2.to_k) in the files given; wanted an SD1.5 UNet or ControlNet")
