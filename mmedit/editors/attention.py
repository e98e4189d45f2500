"""Attention of a few queries over hidden states, for networks that stand beside a VLM."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """softmax(q kᵀ / √width of a head) v in several heads, with biases and without an output
    projection. Queries have the width `module`, what is read has the width `hidden`.
    """

    def __init__(self, module: int, hidden: int, out: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(module, module)
        self.k = nn.Linear(hidden, module)
        self.v = nn.Linear(hidden, out)

    def forward(
        self,
        asking: Float[Tensor, "rows queries module"],
        states: Float[Tensor, "rows tokens hidden"],
        read: Bool[Tensor, "rows tokens"],
    ) -> Float[Tensor, "rows queries out"]:
        """Return what the queries read at some of the tokens. A row that may read none reads all
        of them, and means nothing.
        """
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(asking), self.k(states), self.v(states))
        )
        mask = (read | ~read.any(1, keepdim=True))[:, None, None]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return found.transpose(1, 2).flatten(2)
