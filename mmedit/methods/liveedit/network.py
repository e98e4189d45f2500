"""Everything that LiveEdit learns: two extractors, two generators of experts, a learnt image."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmedit.editors.attention import Attention
from mmedit.editors.blocks import BlockOutput
from mmedit.errors import ConfigError
from mmedit.methods.liveedit.config import LiveEditConfig
from mmedit.methods.liveedit.routing import Asked, Extracts

States = Float[Tensor, "rows tokens hidden"]
Mask = Bool[Tensor, "rows tokens"]


class LiveEditNetwork(nn.Module):
    """Everything that LiveEdit learns."""

    def __init__(self, hidden: int, config: LiveEditConfig) -> None:
        super().__init__()
        if hidden % config.heads:
            raise ConfigError(
                f"the hidden states have width {hidden}, which is not a multiple of editor.heads "
                f"= {config.heads}; set a divisor"
            )
        self.edit_extractor = Extractor(hidden, config)
        self.input_extractor = Extractor(hidden, config)
        self.prototype = nn.Parameter(torch.randn(config.prototype, hidden))
        self.expert_in = ExpertGenerator(hidden, config)
        self.expert_out = ExpertGenerator(hidden, config)
        self.norm = nn.LayerNorm(hidden)

    def stored(self, block: BlockOutput) -> dict[str, Tensor]:
        """Return what is stored of edits, a row for each: the extracts of its question (eqr) and
        image (evr), and its expert.
        """
        states, at = block
        told = at.is_image | at.is_prompt | at.is_answer
        interest, query = self.edit_extractor.of_query(states, at.is_prompt)
        return {
            "eqr": query,
            "evr": self.edit_extractor.of_image(interest, states, at.is_image),
            "expert_in": self.expert_in(states, told),
            "expert_out": self.expert_out(states, told),
        }

    def asked(self, block: BlockOutput) -> Asked:
        """Return what is extracted of questions. Answers are not read."""
        states, at = block
        interest, query = self.input_extractor.of_query(states, at.is_prompt)
        learnt = self.prototype.expand(len(states), -1, -1)
        everywhere = torch.ones(learnt.shape[:2], dtype=torch.bool, device=learnt.device)
        return Asked(
            query=query,
            vision=self.input_extractor.of_image(interest, states, at.is_image),
            prototype=self.input_extractor.of_image(interest, learnt, everywhere),
        )


class Extractor(nn.Module):
    """Learnt queries that attend to the question, and then to the image."""

    def __init__(self, hidden: int, config: LiveEditConfig) -> None:
        super().__init__()
        module, heads = config.module, config.heads
        self.image_queries = nn.Parameter(torch.randn(config.eqe, module))
        self.text_queries = nn.Parameter(torch.randn(config.eqe, module))
        self.interest = Attention(module, hidden, module, heads)
        self.image = Attention(module, hidden, module, heads)
        self.text = Attention(module, hidden, module, heads)
        self.image_norm = nn.LayerNorm(hidden)
        self.text_norm = nn.LayerNorm(hidden)

    def of_query(self, states: States, is_prompt: Mask) -> tuple[Extracts, Extracts]:
        """Return what a question wants to see in its image, and the extract of the question."""
        rows = len(states)
        first, second = (q.expand(rows, -1, -1) for q in (self.image_queries, self.text_queries))
        interest = self.interest(first, self.image_norm(states), is_prompt)
        return interest, self.text(second, self.text_norm(states), is_prompt)

    def of_image(self, interest: Extracts, states: States, is_image: Mask) -> Extracts:
        """Return the extract of an image."""
        return self.image(interest, self.image_norm(states), is_image)


class ExpertGenerator(nn.Module):
    """Learnt queries that attend to all tokens of an edit; what they read is one side of its
    expert.
    """

    def __init__(self, hidden: int, config: LiveEditConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.rank, config.module))
        self.attention = Attention(config.module, hidden, hidden, config.heads)
        self.norm = nn.LayerNorm(hidden)
        self.scale = 1 / (config.lora_scale * config.rank**0.5)

    def forward(self, states: States, told: Mask) -> Float[Tensor, "rows rank hidden"]:
        """Return the vectors of an expert for each row."""
        asking = self.queries.expand(len(states), -1, -1)
        return self.scale * self.attention(asking, self.norm(states), told)
