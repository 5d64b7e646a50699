"""Key maps between the official checkpoints' names and ours, as data, readable in both directions.

A rule pairs two name patterns. ``{word}`` stands for the same text on both sides: ``{site}`` and ``{blocks}`` span
dots, ``{i}`` is a number, ``{leaf}`` is the rest. ``{site-}`` is the site with its dots written as dashes, as our
adapters name their layers. The first rule that fits wins, in either direction, so special names precede general ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

#: Our component folders that official tensors end up in.
UNET, DYNAMICS, IMAGE_PROMPT = "unet", "dynamics_adapter", "image_prompt"
POSE, FACE, VAE = "pose_controlnet", "face_controlnet", "vae"

_WORDS = {"site": r"[\w.]+?", "blocks": r"[\w.]+?", "i": r"\d+", "n": r"\d+", "leaf": r"[\w.]+", "key": r"[\w.]+"}


@dataclass(frozen=True)
class Target:
    """Where one official tensor goes: component folder, our key, and which part of the tensor (dim 0) it is."""

    component: str
    key: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Rule:
    """One line of a key map.

    Attributes:
        component: folder of our pipeline that holds the tensor.
        official: pattern of the official name.
        ours: pattern of our name; several when the official tensor is cut into that many equal parts along dim 0.
        sinusoid: the tensor is the fixed positional encoding, which is checked rather than carried over.
    """

    component: str
    official: str
    ours: str | tuple[str, ...]
    sinusoid: bool = False

    @property
    def our_patterns(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @cached_property
    def official_regex(self) -> re.Pattern[str]:
        return _compile(self.official)

    @cached_property
    def our_regexes(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_compile(pattern) for pattern in self.our_patterns)


def _compile(pattern: str) -> re.Pattern[str]:
    """Regular expression of a pattern; ``{site-}`` reads text without dots."""
    pieces = re.split(r"\{([\w-]+)\}", pattern)
    out = re.escape(pieces[0])
    for word, text in zip(pieces[1::2], pieces[2::2], strict=True):
        expression = r"[\w-]+?" if word.endswith("-") else _WORDS[word]
        out += f"(?P<{word.rstrip('-')}>{expression})" + re.escape(text)
    return re.compile(out)


def _fill(pattern: str, words: dict[str, str]) -> str:
    """The pattern with its words put in, dots dashed or undashed as the pattern asks."""

    def put(match: re.Match[str]) -> str:
        word = match[1]
        if word.endswith("-"):
            return words[word[:-1]].replace(".", "-")
        return words[word].replace("-", ".")

    return re.sub(r"\{([\w-]+)\}", put, pattern)


_TEMPORAL = "{blocks}.motion_modules.{i}.temporal_transformer"
_TEMPORAL_BLOCK = f"{_TEMPORAL}.transformer_blocks.{{n}}"
_MOTION = "{blocks}.motion_modules.{i}"
_MOTION_BLOCK = f"{_MOTION}.transformer_blocks.{{n}}"

#: The official UNet checkpoint holds the SD1.5 UNet, motion modules, dynamics adapter and image-prompt layers.
UNET_RULES: tuple[Rule, ...] = (
    Rule(DYNAMICS, "{site}.to_q_ff.weight", "layers.{site-}.to_q_ref.weight"),
    Rule(DYNAMICS, "{site}.to_out_ff.{leaf}", "layers.{site-}.to_out_ref.{leaf}"),
    Rule(IMAGE_PROMPT, "{site}.to_k_ip.weight", "layers.{site-}.to_k_image.weight"),
    Rule(IMAGE_PROMPT, "{site}.to_v_ip.weight", "layers.{site-}.to_v_image.weight"),
    # Official: one positional encoding per temporal attention; ours: one per block, for both.
    Rule(UNET, f"{_TEMPORAL_BLOCK}.attention_blocks.0.pos_encoder.pe", f"{_MOTION_BLOCK}.pos_embed.pe", True),
    Rule(UNET, f"{_TEMPORAL_BLOCK}.attention_blocks.1.pos_encoder.pe", f"{_MOTION_BLOCK}.pos_embed.pe", True),
    Rule(UNET, f"{_TEMPORAL_BLOCK}.attention_blocks.0.{{leaf}}", f"{_MOTION_BLOCK}.attn1.{{leaf}}"),
    Rule(UNET, f"{_TEMPORAL_BLOCK}.attention_blocks.1.{{leaf}}", f"{_MOTION_BLOCK}.attn2.{{leaf}}"),
    Rule(UNET, f"{_TEMPORAL_BLOCK}.norms.0.{{leaf}}", f"{_MOTION_BLOCK}.norm1.{{leaf}}"),
    Rule(UNET, f"{_TEMPORAL_BLOCK}.norms.1.{{leaf}}", f"{_MOTION_BLOCK}.norm2.{{leaf}}"),
    Rule(UNET, f"{_TEMPORAL_BLOCK}.ff_norm.{{leaf}}", f"{_MOTION_BLOCK}.norm3.{{leaf}}"),
    Rule(UNET, f"{_TEMPORAL}.{{leaf}}", f"{_MOTION}.{{leaf}}"),
    Rule(UNET, "{key}", "{key}"),
)

_LAYER = "layers.{i}"
#: `image_proj` of ip-adapter-plus_sd15.bin.
RESAMPLER_RULES: tuple[Rule, ...] = (
    Rule(IMAGE_PROMPT, f"{_LAYER}.0.norm1.{{leaf}}", f"resampler.{_LAYER}.ln0.{{leaf}}"),
    Rule(IMAGE_PROMPT, f"{_LAYER}.0.norm2.{{leaf}}", f"resampler.{_LAYER}.ln1.{{leaf}}"),
    Rule(IMAGE_PROMPT, f"{_LAYER}.0.to_q.weight", f"resampler.{_LAYER}.attn.to_q.weight"),
    Rule(
        IMAGE_PROMPT,
        f"{_LAYER}.0.to_kv.weight",
        (f"resampler.{_LAYER}.attn.to_k.weight", f"resampler.{_LAYER}.attn.to_v.weight"),
    ),
    Rule(IMAGE_PROMPT, f"{_LAYER}.0.to_out.weight", f"resampler.{_LAYER}.attn.to_out.0.weight"),
    Rule(IMAGE_PROMPT, f"{_LAYER}.1.0.{{leaf}}", f"resampler.{_LAYER}.ff.0.{{leaf}}"),
    Rule(IMAGE_PROMPT, f"{_LAYER}.1.1.weight", f"resampler.{_LAYER}.ff.1.net.0.proj.weight"),
    Rule(IMAGE_PROMPT, f"{_LAYER}.1.3.weight", f"resampler.{_LAYER}.ff.1.net.2.weight"),
    Rule(IMAGE_PROMPT, "{key}", "resampler.{key}"),
)

#: ControlNet checkpoints already carry diffusers' names.
POSE_RULES: tuple[Rule, ...] = (Rule(POSE, "{key}", "{key}"),)
FACE_RULES: tuple[Rule, ...] = (Rule(FACE, "{key}", "{key}"),)

#: SD1.5's VAE file still carries the names that diffusers' attention had before 2023.
VAE_RULES: tuple[Rule, ...] = (
    Rule(VAE, "{blocks}.mid_block.attentions.{i}.query.{leaf}", "{blocks}.mid_block.attentions.{i}.to_q.{leaf}"),
    Rule(VAE, "{blocks}.mid_block.attentions.{i}.key.{leaf}", "{blocks}.mid_block.attentions.{i}.to_k.{leaf}"),
    Rule(VAE, "{blocks}.mid_block.attentions.{i}.value.{leaf}", "{blocks}.mid_block.attentions.{i}.to_v.{leaf}"),
    Rule(
        VAE, "{blocks}.mid_block.attentions.{i}.proj_attn.{leaf}", "{blocks}.mid_block.attentions.{i}.to_out.0.{leaf}"
    ),
    Rule(VAE, "{key}", "{key}"),
)

#: Official files may carry these buffers; every model recomputes them.
DROPPED_BUFFERS = ("position_ids",)


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from: all official keys whose parts, joined along dim 0, hold it."""

    official: str
    part: int
    parts: int
    sinusoid: bool


def to_ours(official: str, rules: Sequence[Rule]) -> tuple[Rule, tuple[Target, ...]] | None:
    """Our names for an official one, and the rule that says so; None when no rule fits."""
    for rule in rules:
        if match := rule.official_regex.fullmatch(official):
            names = [_fill(pattern, match.groupdict()) for pattern in rule.our_patterns]
            return rule, tuple(Target(rule.component, name, i, len(names)) for i, name in enumerate(names))
    return None


def to_official(component: str, key: str, rules: Sequence[Rule]) -> tuple[Source, ...]:
    """Official names for one of ours: one, or one per temporal attention for a positional encoding; () if none fits."""
    found: list[Source] = []
    for rule in rules:
        if rule.component != component or (found and not rule.sinusoid):
            continue
        for part, regex in enumerate(rule.our_regexes):
            if match := regex.fullmatch(key):
                name = _fill(rule.official, match.groupdict())
                found.append(Source(name, part, len(rule.our_patterns), rule.sinusoid))
        if found and not rule.sinusoid:
            break
    return tuple(found)


def clean_key(key: str) -> str:
    """An official key without the `module.` that data-parallel training puts anywhere in it."""
    return key.replace("module.", "")


def image_sites(keys: Iterable[str]) -> list[str]:
    """Cross-attention sites in the order in which IP-Adapter files number them: down, up, then mid blocks."""
    sites = {
        key.partition(".attn2.")[0] + ".attn2" for key in keys if ".attn2." in key and ".motion_modules." not in key
    }
    order = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}

    def place(site: str) -> tuple[int, list[int]]:
        return order.get(site.partition(".")[0], 3), [int(piece) for piece in site.split(".") if piece.isdigit()]

    return sorted(sites, key=place)
