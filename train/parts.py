"""The parts of a model as a recipe handles them: read a base, make what it lacks, thaw what trains."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.adapters.reference_net import ReferenceNet
from xdyna.attention import without_adapter_layers
from xdyna.configs.recipes import Part
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.errors import UserError
from xdyna.infer.load import choose_model
from xdyna.prompts import StoredPrompt
from xdyna.unet import XDynaUNet

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
#: Weights of the parts that transformers saves.
ENCODER_WEIGHTS_NAME = "model.safetensors"
#: Channels of a new ControlNet's condition layers, one entry per halving of the size and one before them.
CONDITION_WIDTHS = (16, 32, 96, 256)


@dataclass(frozen=True, eq=False)
class Parts:
    """A model in pieces, every weight frozen; the adapters are attached to the UNet. Names are the pipeline's.

    Attributes:
        vae: pictures to latents and back.
        unet: with its motion modules.
        dynamics_adapter: attached to `unet`.
        pose_controlnet: 3 condition channels.
        face_controlnet: 6 condition channels.
        stored_prompt: the empty prompt's embedding; for a base with a text encoder, made by it.
        scheduler: the noise schedule that the model is used with.
        image_prompt: attached to `unet`; only where the base has one, and then the two below too.
        image_encoder: CLIP's, feeds `image_prompt`.
        feature_extractor: pictures to what `image_encoder` takes.
        folder: of the base; None for a model that was made from nothing.
        new: parts that the base lacked.
    """

    vae: AutoencoderKL
    unet: XDynaUNet
    dynamics_adapter: DynamicsAdapter
    pose_controlnet: PoseControlNet
    face_controlnet: SFaceControlNet
    stored_prompt: StoredPrompt
    scheduler: Any
    image_prompt: ImagePromptAdapter | None = None
    image_encoder: Any = None
    feature_extractor: Any = None
    folder: Path | None = None
    new: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for module in self.modules().values():
            module.requires_grad_(False).eval()
        for adapter in (self.dynamics_adapter, self.image_prompt):
            if adapter is not None and not adapter.is_attached:
                adapter.attach(self.unet)

    def modules(self) -> dict[str, nn.Module]:
        """All parts with weights, by name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, nn.Module)}


def load_base(base: str | Path) -> Parts:
    """Read a model in float32: `tiny`, `x-dyna`, or a folder as `xdyna convert` or a recipe writes it.

    A base without a Dynamics-Adapter or ControlNets gets new ones that change nothing until they are trained: an
    adapter whose output projections are zero, ControlNets with the UNet's weights and zero convolutions.

    Raises:
        UserError: no such folder, a part is missing that cannot be made, or a part cannot be read.
    """
    folder = base_folder(base)
    found: dict[str, Any] = {}
    for name, kind in (("vae", AutoencoderKL), ("unet", XDynaUNet), ("scheduler", _scheduler_class(folder))):
        found[name] = _read(folder, name, kind)
        if found[name] is None:
            raise UserError(f"{folder}: has no {name}/; wanted a model folder as `xdyna convert` writes it")
    unet, vae = found["unet"], found["vae"]
    found["stored_prompt"] = _read(folder, "stored_prompt", StoredPrompt) or _embed_empty_prompt(folder, unet)
    if image_prompt := _read(folder, "image_prompt", ImagePromptAdapter):
        found |= {"image_prompt": image_prompt, **_read_image_encoder(folder)}
    new = []
    for name, kind in (("pose_controlnet", PoseControlNet), ("face_controlnet", SFaceControlNet)):
        found[name] = _read(folder, name, kind)
        if found[name] is None:
            found[name] = controlnet_from_unet(kind, unet, vae)
            new.append(name)
    if _class_name(folder / "dynamics_adapter" / "config.json") == ReferenceNet.__name__:
        raise UserError(
            f"{folder}: a baseline of recipe reference_net, which no recipe takes as a base; wanted the base it was "
            "trained on, and for training it further `xdyna train reference_net --init` with this folder"
        )
    found["dynamics_adapter"] = _read(folder, "dynamics_adapter", DynamicsAdapter)
    if found["dynamics_adapter"] is None:
        found["dynamics_adapter"] = DynamicsAdapter.from_unet(unet)
        new.append("dynamics_adapter")
    try:
        return Parts(**found, folder=folder, new=frozenset(new))
    except ValueError as error:  # an adapter of another model
        raise UserError(f"{folder}: parts that do not fit each other: {error}") from None


def read_vae(folder: Path, option: str) -> AutoencoderKL:
    """A saved autoencoder in float32.

    Args:
        folder: the autoencoder's own, or a model's.
        option: what the folder was given by, for messages.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{option}{folder}: not the folder of an autoencoder; wanted a run's model or its vae/ (`xdyna train vae`)"
        )
    vae: AutoencoderKL = _read(folder.parent, folder.name, AutoencoderKL)
    return vae


def base_folder(base: str | Path) -> Path:
    """The folder of a base by name or path.

    Raises:
        UserError: no such folder, or not a model's.
    """
    folder = Path(base).expanduser()
    return folder if (folder / "unet").is_dir() else choose_model(str(base)).folder


def renew(parts: Parts, names: Iterable[Part]) -> None:
    """Put parts back to where training starts without a model: adapter and ControlNets as `load_base` makes them,
    motion modules that change nothing (torch's global seed decides the layers before the last).

    Raises:
        ValueError: the spatial UNet, which has no such start.
    """
    for name in names:
        if name == "dynamics_adapter":
            parts.dynamics_adapter.detach()
            parts.dynamics_adapter.load_state_dict(DynamicsAdapter.from_unet(parts.unet).state_dict())
            parts.dynamics_adapter.attach(parts.unet)
        elif name == "motion":
            for module in motion_modules(parts.unet):
                for layer in module.modules():
                    if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.GroupNorm)):
                        layer.reset_parameters()
            silence_motion(parts.unet)
        elif name in ("pose_controlnet", "face_controlnet"):
            old: ControlNetModel = getattr(parts, name)
            copy_from_unet(zeroed := type(old).from_config(old.config), parts.unet)
            old.load_state_dict(zeroed.state_dict())
        else:
            raise ValueError(f"{name} cannot be made new; wanted an adapter, ControlNet or motion")


def controlnet_from_unet(kind: type[ControlNetModel], unet: XDynaUNet, vae: AutoencoderKL) -> ControlNetModel:
    """A new ControlNet with a UNet's shape and weights; its zero convolutions let it say nothing yet."""
    down = [name.replace("Motion", "2D") for name in unet.config.down_block_types]
    controlnet = kind(
        in_channels=unet.config.in_channels,
        down_block_types=tuple(down),
        block_out_channels=tuple(unet.config.block_out_channels),
        layers_per_block=unet.config.layers_per_block,
        norm_num_groups=unet.config.norm_num_groups,
        cross_attention_dim=unet.config.cross_attention_dim,
        attention_head_dim=unet.config.num_attention_heads,  # a number of heads, whatever diffusers calls it
        conditioning_embedding_out_channels=CONDITION_WIDTHS[: len(vae.config.block_out_channels)],
    )
    copy_from_unet(controlnet, unet)
    return controlnet


def copy_from_unet(controlnet: ControlNetModel, unet: XDynaUNet) -> None:
    """Give a ControlNet the UNet's weights wherever it has a layer of that name and shape."""
    host = unet.state_dict()
    own = controlnet.state_dict()
    shared = {key: host[key] for key, value in own.items() if key in host and host[key].shape == value.shape}
    controlnet.load_state_dict({**own, **shared})


# -- what trains -----------------------------------------------------------------------------------------------------


def motion_modules(unet: XDynaUNet) -> Iterator[nn.Module]:
    """The motion modules in module order."""
    for block in [*unet.down_blocks, *unet.up_blocks]:
        yield from block.motion_modules


def silence_motion(unet: XDynaUNet) -> None:
    """Zero the motion modules' last layer: they change nothing until they are trained."""
    for module in motion_modules(unet):
        for parameter in module.get_submodule("proj_out").parameters():
            nn.init.zeros_(parameter)


def thaw(parts: Parts, trains: Iterable[str]) -> dict[str, nn.Module]:
    """Let the named parts train; return them as modules by name, what a checkpoint has to hold.

    `unet` means its spatial layers, `motion` its motion modules. Where the spatial layers train, the module that is
    returned for them is the whole UNet, attached adapters included.
    """
    chosen: dict[str, nn.Module] = {}
    for name in trains:
        if name == "motion":
            chosen[name] = nn.ModuleList(motion_modules(parts.unet)).requires_grad_(True)
        elif name == "unet":
            kept = {id(p) for module in motion_modules(parts.unet) for p in module.parameters()}
            with without_adapter_layers(parts.unet):
                for parameter in parts.unet.parameters():
                    parameter.requires_grad_(parameter.requires_grad or id(parameter) not in kept)
            chosen[name] = parts.unet
        else:
            chosen[name] = getattr(parts, name).requires_grad_(True)
    if "unet" in chosen:
        chosen = {name: part for name, part in chosen.items() if name not in ("motion", "dynamics_adapter")}
    return chosen


def count_parameters(*modules: nn.Module, trainable: bool = False) -> int:
    """Parameters of the modules, each counted once; all of them, or those that train."""
    found = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in found.values() if p.requires_grad or not trainable)


def load_init(parts: Parts, init: Path, trains: Iterable[str]) -> list[str]:
    """Start the parts that train from other weights than the base's.

    Args:
        parts: of the base.
        init: a model folder, which must hold one of the parts at least; or, when one part trains, that part's own
            folder or safetensors file.
        trains: names of the parts that train.

    Returns:
        Names of the parts that were filled.

    Raises:
        UserError: nothing there for these parts, or weights of another shape.
    """
    names = list(trains)
    folders = {"motion": "unet"}
    files = {name: init / folders.get(name, name) / _weights_name(name) for name in names}
    files = {name: path for name, path in files.items() if path.is_file()}
    if not files and len(names) == 1:
        files = {names[0]: init / _weights_name(names[0]) if init.is_dir() else init}
    if not files or not all(path.is_file() for path in files.values()):
        raise UserError(f"--init {init}: holds no weights of {', '.join(names)}; wanted {' or '.join(_wanted(names))}")
    for name, path in files.items():
        _fill(parts, name, path)
    return list(files)


def _weights_name(name: str) -> str:
    return ENCODER_WEIGHTS_NAME if name == "image_encoder" else WEIGHTS_NAME


def _wanted(names: Sequence[str]) -> list[str]:
    kinds = ["a model folder with one of them"]
    return [*kinds, "the part's own folder or .safetensors file"] if len(names) == 1 else kinds


def _fill(parts: Parts, name: str, path: Path) -> None:
    """Load the weights of one part, all of them."""
    try:
        values = load_file(path)
    except Exception as error:  # safetensors has an exception of its own for what is no safetensors file
        raise UserError(f"--init {path}: cannot be read as safetensors: {error}") from None
    module: nn.Module = parts.unet if name in ("unet", "motion") else getattr(parts, name)
    with without_adapter_layers(parts.unet):
        own = module.state_dict()
        wanted = {k: v for k, v in own.items() if name not in ("unet", "motion") or _is_motion(k) == (name == "motion")}
        wrong = [k for k, v in wanted.items() if k not in values or values[k].shape != v.shape]
        if wrong:
            found = f"shape {list(values[wrong[0]].shape)}" if wrong[0] in values else "nothing"
            raise UserError(
                f"--init {path}: {len(wrong)} of {len(wanted)} tensors of {name} do not fit; {wrong[0]}: got {found}, "
                f"wanted shape {list(wanted[wrong[0]].shape)}; are they of another base?"
            )
        module.load_state_dict({**own, **{key: values[key] for key in wanted}})


def _is_motion(key: str) -> bool:
    return ".motion_modules." in key


class _Through(nn.Module):
    """Stands in for a motion module and does nothing."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@contextmanager
def without_motion(unet: XDynaUNet) -> Iterator[None]:
    """Inside this block the UNet has no motion modules: frames do not see each other."""
    blocks = [*unet.down_blocks, *unet.up_blocks]
    taken = [block.motion_modules for block in blocks]
    for block, modules in zip(blocks, taken, strict=True):
        block.motion_modules = nn.ModuleList(_Through() for _ in modules)
    try:
        yield
    finally:
        for block, modules in zip(blocks, taken, strict=True):
            block.motion_modules = modules


# -- reading ---------------------------------------------------------------------------------------------------------


def _read(folder: Path, name: str, kind: Any) -> Any:
    """One part in float32; None when the folder has none."""
    if not (folder / name).is_dir():
        return None
    try:
        if issubclass(kind, nn.Module):
            return kind.from_pretrained(folder / name, local_files_only=True, use_safetensors=True).float()
        return kind.from_pretrained(folder / name, local_files_only=True)
    except Exception as error:
        # Whatever lies in a user's folder can make diffusers fail in any way; the folder is what to name.
        lines = str(error).strip().splitlines() or [""]
        raise UserError(f"{folder / name}: not a {kind.__name__} that can be loaded: {lines[0][:300]}") from error


def _scheduler_class(folder: Path) -> Any:
    """The class that a base's scheduler was saved as."""
    import diffusers

    # Where there is none, DDIM's says what is wrong with the folder.
    return getattr(diffusers, _class_name(folder / "scheduler" / "scheduler_config.json"), DDIMScheduler)


def _class_name(config: Path) -> str:
    """The class that a part was saved as; empty where its config does not say."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@torch.no_grad()
def _embed_empty_prompt(folder: Path, unet: XDynaUNet) -> StoredPrompt:
    """What a base's text encoder makes of the empty prompt; the encoder is not kept."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer, encoder = _read(folder, "tokenizer", CLIPTokenizer), _read(folder, "text_encoder", CLIPTextModel)
    if tokenizer is None or encoder is None:
        raise UserError(f"{folder}: has neither stored_prompt/ nor text_encoder/ and tokenizer/; wanted one of them")
    length = unet.config.num_text_tokens
    ids = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    prompt = StoredPrompt(num_tokens=length, dim=unet.config.cross_attention_dim)
    prompt.embedding.copy_(encoder(ids)[0])
    return prompt


def _read_image_encoder(folder: Path) -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    read = {
        "image_encoder": _read(folder, "image_encoder", CLIPVisionModelWithProjection),
        "feature_extractor": _read(folder, "feature_extractor", CLIPImageProcessorPil),
    }
    for name, part in read.items():
        if part is None:
            raise UserError(f"{folder}: has an image_prompt/ but no {name}/; wanted both")
    return read


# -- pictures and latents --------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """[N, 3, H, W] in -1..1 -> scaled latents [N, C, h, w] (the distribution's mode)."""
    latents = vae.encode(pictures).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents [N, C, h, w] -> uint8 [N, H, W, 3] on the CPU."""
    pictures = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
