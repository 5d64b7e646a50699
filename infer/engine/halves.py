"""The halves of guidance one after the other: the same numbers with half the activations, and a little more work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from xdyna.attention import Record


class HalvesApart:
    """Stands for an `XDynaUNet` in a predictor and runs each half of the rows in a call of its own.

    Args:
        unet: with its adapters attached.
    """

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: Any = None,
        mid_block_additional_residual: Tensor | None = None,
        reference_cache: Any = None,
        record: Any = None,
    ) -> Any:
        """See `XDynaUNet.forward`: rows of `encoder_hidden_states` are k times those of `sample`."""
        rows, all_rows = len(sample), len(encoder_hidden_states)
        halves, parts, records = all_rows // rows, [], []
        for half in range(halves):

            def own(x: Tensor, of: int = all_rows, half: int = half) -> Tensor:
                """The half's rows of what has rows for all halves; what they share is left as it is."""
                return x.chunk(halves)[half] if len(x) == of else x

            recorded: Any = None if record is None else Record()
            down = down_block_additional_residuals
            mid = mid_block_additional_residual
            out = self._unet(
                sample,
                timestep,
                encoder_hidden_states=own(encoder_hidden_states),
                down_block_additional_residuals=None if down is None else [own(x) for x in down],
                mid_block_additional_residual=None if mid is None else own(mid),
                reference_cache=None
                if reference_cache is None
                else {site: (own(key, halves), own(value, halves)) for site, (key, value) in reference_cache.items()},
                record=recorded,
            ).sample
            parts.append(out)
            records.append(recorded)
        if record is not None:
            for site in records[0]:
                keys, values = zip(*(recorded[site] for recorded in records), strict=True)
                record[site] = torch.cat(keys), torch.cat(values)
        return SimpleNamespace(sample=torch.cat(parts))
