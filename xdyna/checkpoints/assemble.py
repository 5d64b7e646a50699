"""Fill a component's tensors from checkpoint files: each one found, made or named as missing; nothing left over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from xdyna.checkpoints.key_maps import Rule, Source, to_official
from xdyna.checkpoints.tensor_files import Entry, TensorFile, check_finite
from xdyna.errors import UserError

logger = logging.getLogger(__name__)

#: Largest difference from the sinusoid that rounding in a dtype explains (values are in -1..1).
_PE_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 1e-2}
_MAX_NAMED = 5


@dataclass(frozen=True)
class View:
    """Some tensors of a file under official names.

    Attributes:
        file: where they are.
        names: official name -> name in the file.
    """

    file: TensorFile
    names: Mapping[str, str]

    @classmethod
    def whole(cls, file: TensorFile) -> View:
        return cls(file, {key: key for key in file})

    def shape(self, key: str) -> tuple[int, ...]:
        return self.file.shape(self.names[key])

    def dtype(self, key: str) -> torch.dtype:
        return self.file.dtype(self.names[key])

    def read(self, key: str) -> Tensor:
        return self.file.read(self.names[key])


@dataclass
class Pool:
    """Files that together hold a model, strongest first: a tensor comes from the first that has it."""

    views: list[View]

    def find(self, key: str) -> View | None:
        return next((view for view in self.views if key in view.names), None)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every official key, as in the first file that has it."""
        return {key: view.shape(key) for view in reversed(self.views) for key in view.names}

    def paths(self) -> str:
        return ", ".join(str(view.file.path) for view in self.views)


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        folder: what was written.
        tensors: component -> file -> number of tensors that it gave.
        warnings: one line each.
    """

    folder: Path
    tensors: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        logger.warning("%s", text)

    def count(self, component: str, origin: str, tensors: int = 1) -> None:
        """Note that `origin` (a file, or what stood in for one) gave so many of a component's tensors."""
        origins = self.tensors.setdefault(component, {})
        origins[origin] = origins.get(origin, 0) + tensors


#: Makes what a file lacks: (our key, shape) -> (dtype, maker, what it is), or None to call it missing.
Fallback = Callable[[str, tuple[int, ...]], tuple[torch.dtype, Callable[[], Tensor], str] | None]


def plan(
    component: str,
    wanted: Mapping[str, tuple[int, ...]],
    pool: Pool,
    rules: Sequence[Rule],
    dtype: torch.dtype | None,
    report: Report,
    fallback: Fallback | None = None,
) -> list[Entry]:
    """An entry for every tensor of a component, in the component's order.

    Args:
        component: its folder name.
        wanted: our key -> shape.
        pool: where the values are.
        rules: key map.
        dtype: of floating point tensors, or None to keep each as it is stored.
        report: counts are added to it.
        fallback: what to do about tensors that no file has.
    Raises:
        UserError: tensors are missing, or have another shape than the model wants; the first few are named.
    """
    entries: list[Entry] = []
    missing: list[str] = []
    for key, shape in wanted.items():
        sources = to_official(component, key, rules)
        view = pool.find(sources[0].official)
        if sources[0].sinusoid:
            entries.append(_sinusoid_entry(key, shape, sources, pool, dtype))
            report.count(component, "the sinusoid formula")
        elif view is not None:
            entries.append(_entry(key, shape, sources[0], view, dtype))
            report.count(component, str(view.file.path))
        elif fallback and (made := fallback(key, shape)):
            stored, make, origin = made
            final = dtype if dtype and stored.is_floating_point else stored
            entries.append(Entry(key, shape, final, _cast(make, final, key)))
            report.count(component, origin)
        else:
            missing.append(sources[0].official)
    if missing:
        raise UserError(
            f"{component}: {len(missing)} of {len(wanted)} tensors are in none of the files given "
            f"({pool.paths() or 'none'}): {some(missing)}; {_advice(missing)}"
        )
    return entries


def refuse_unknown(pool: Pool, components: Mapping[str, Iterable[str]], rules: Sequence[Rule]) -> None:
    """Refuse tensors that belong to no component, e.g. of another model, or of a newer version.

    Args:
        pool: files with official names.
        components: component -> its keys.
        rules: key map.
    Raises:
        UserError: naming the file and the first few tensors.
    """
    known = {
        source.official
        for component, keys in components.items()
        for key in keys
        for source in to_official(component, key, rules)
    }
    for view in pool.views:
        if unknown := [name for key, name in view.names.items() if key not in known]:
            raise UserError(
                f"{view.file.path}: {len(unknown)} of {len(view.names)} tensors belong to no part of "
                f"{', '.join(components)}: {some(unknown)}; wanted a checkpoint of that model"
            )


def some(names: Sequence[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:_MAX_NAMED]) + (" .." if len(names) > _MAX_NAMED else "")


def sinusoid(length: int, channels: int) -> Tensor:
    """The positional encoding of the motion modules: [1, length, channels], even channels sine, odd cosine."""
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    encoding: Tensor = SinusoidalPositionalEmbedding(channels, length).pe
    return encoding


def _entry(key: str, shape: tuple[int, ...], source: Source, view: View, dtype: torch.dtype | None) -> Entry:
    stored_shape, stored = view.shape(source.official), view.dtype(source.official)
    whole = (source.parts * shape[0], *shape[1:]) if shape else ()
    if stored_shape != whole:
        raise UserError(
            f"{view.file.path}: {source.official} has shape {list(stored_shape)}, the model wants {list(whole)}; "
            "is it a checkpoint of another model, or does the config say another size?"
        )

    def make() -> Tensor:
        tensor = view.read(source.official)
        return tensor if source.parts == 1 else tensor.chunk(source.parts)[source.part]

    final = dtype if dtype and stored.is_floating_point else stored
    return Entry(key, shape, final, _cast(make, final, f"{view.file.path}: {source.official}"))


def _cast(make: Callable[[], Tensor], dtype: torch.dtype, name: str) -> Callable[[], Tensor]:
    def cast() -> Tensor:
        tensor = make()
        if tensor.dtype == dtype:
            return tensor
        tensor = tensor.to(dtype)
        check_finite(tensor, f"{name}, as {str(dtype).removeprefix('torch.')},")
        return tensor

    return cast


def _sinusoid_entry(
    key: str, shape: tuple[int, ...], sources: Sequence[Source], pool: Pool, dtype: torch.dtype | None
) -> Entry:
    """The formula's values, in the dtype in which the file keeps its own copy."""
    expected = sinusoid(shape[1], shape[2])
    stored = torch.float32
    for source in sources:
        if view := pool.find(source.official):
            stored = view.dtype(source.official)
            _check_sinusoid(view, source.official, expected)
    final = dtype or stored
    return Entry(key, shape, final, lambda: expected.to(final))


def _check_sinusoid(view: View, key: str, expected: Tensor) -> None:
    name = f"{view.file.path}: {key}"
    if view.shape(key) != tuple(expected.shape):
        raise UserError(f"{name} has shape {list(view.shape(key))}, wanted {list(expected.shape)}")
    tensor = view.read(key)
    error = float((tensor.float() - expected).abs().max())
    tolerance = _PE_TOLERANCE.get(tensor.dtype, 1e-5)
    if error > tolerance:
        raise UserError(
            f"{name} differs from the sinusoid by up to {error:.3g}, at most {tolerance:g} is rounding: the model was "
            "trained with another positional encoding and would not run the same here"
        )


def _advice(missing: Sequence[str]) -> str:
    """Which file usually holds what is missing."""
    if any(".motion_modules." in key for key in missing):
        return "motion modules come with a complete UNet checkpoint or an AnimateDiff file (--motion)"
    if any("_ip." in key for key in missing):
        return "image-prompt layers come with a complete UNet checkpoint or ip-adapter-plus_sd15.bin (--ip-adapter)"
    return "a complete checkpoint has them; for a partial UNet give the Stable Diffusion 1.5 folder (--sd15)"
