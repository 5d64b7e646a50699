"""A stored empty-prompt embedding, for models that ship without tokenizer and text encoder."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class StoredPrompt(ModelMixin, ConfigMixin):
    """Holds one text embedding [1, T, C]; it stands where a text encoder would and knows only the empty prompt.

    Args:
        num_tokens: T.
        dim: C, the width of the UNet's cross-attention.
    """

    @register_to_config
    def __init__(self, num_tokens: int = 77, dim: int = 768) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(1, num_tokens, dim))

    def forward(self, batch: int = 1) -> Tensor:
        """The embedding, repeated: [batch, T, C]."""
        return self.embedding.expand(batch, -1, -1)
