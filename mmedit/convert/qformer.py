"""The Q-Former of BLIP-2 (Li et al. 2023): names of LAVIS' `blip2_pretrained_*.pth` to those of
transformers' `Blip2QFormerModel`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor
from transformers import Blip2QFormerConfig

from mmedit.convert.account import Checkpoint, Drops, Shapes, agreed_size, numbers
from mmedit.convert.vision import known_heads
from mmedit.errors import ModelError

HEADS = {768: 12}
LAYER = r"Qformer\.bert\.encoder\.layer\.(\d+)\."
NORM = "Qformer.bert.embeddings.LayerNorm"
DROPS: Drops = (
    (r"Qformer\.bert\.embeddings\.position_ids", "a buffer that counts"),
    (
        r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight"
        r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*|Qformer\.cls\..*",
        "the Q-Former's text branch, which reads no text here",
    ),
)


@dataclass(frozen=True, kw_only=True)
class QFormerSizes:
    """Sizes that are read from the weights, and the number of heads."""

    width: int
    intermediate: int
    layers: int
    cross_attention_frequency: int
    queries: int
    heads: int
    image_width: int

    @property
    def config(self) -> Blip2QFormerConfig:
        """The config, with BERT's defaults for all that LAVIS does not change."""
        return Blip2QFormerConfig(
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
            cross_attention_frequency=self.cross_attention_frequency,
            encoder_hidden_size=self.image_width,
        )

    @property
    def shapes(self) -> Shapes:
        """Shapes of the used tensors by original name, without ln_vision and projection."""
        shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, self.queries, self.width)}
        shapes |= {f"{NORM}.weight": (self.width,), f"{NORM}.bias": (self.width,)}
        for i in range(self.layers):
            layer = f"Qformer.bert.encoder.layer.{i}"
            shapes |= self._attention(f"{layer}.attention", self.width)
            if i % self.cross_attention_frequency == 0:
                shapes |= self._attention(f"{layer}.crossattention", self.image_width)
            shapes |= linear_shapes(
                f"{layer}.intermediate_query.dense", self.width, self.intermediate
            )
            shapes |= self._output(f"{layer}.output_query", self.intermediate)
        return shapes

    def _attention(self, name: str, seen: int) -> Shapes:
        return {
            **linear_shapes(f"{name}.self.query", self.width, self.width),
            **linear_shapes(f"{name}.self.key", seen, self.width),
            **linear_shapes(f"{name}.self.value", seen, self.width),
            **self._output(f"{name}.output", self.width),
        }

    def _output(self, name: str, width: int) -> Shapes:
        norm = f"{name}.LayerNorm"
        return {
            **linear_shapes(f"{name}.dense", width, self.width),
            f"{norm}.weight": (self.width,),
            f"{norm}.bias": (self.width,),
        }


def qformer_sizes(checkpoint: Checkpoint, *, image_width: int, heads: int | None) -> QFormerSizes:
    """Return the sizes. Raises ModelError without a Q-Former or a known number of heads."""
    width = agreed_size(checkpoint, {rf"{LAYER}.*\.LayerNorm\.(weight|bias)": 0})
    # counted, so that a stray name is extra and does not ask for all layers below it
    layers = len(numbers(checkpoint, rf"{LAYER}(?:attention|intermediate_query|output_query)\."))
    crossing = numbers(checkpoint, rf"{LAYER}crossattention\.")
    if not crossing or crossing[0] != 0:
        raise ModelError(
            f"{checkpoint} has no Qformer.bert.encoder.layer.0.crossattention.*: without it the "
            "Q-Former does not see the image"
        )
    queries = checkpoint.shape("query_tokens")
    if len(queries) != 3:
        raise ModelError(
            f"{checkpoint}: query_tokens is {list(queries)}; expected [1, queries, width]"
        )
    return QFormerSizes(
        width=width,
        intermediate=agreed_size(
            checkpoint,
            {
                rf"{LAYER}intermediate_query\.dense\.(weight|bias)": 0,
                rf"{LAYER}output_query\.dense\.weight": 1,
            },
        ),
        layers=layers,
        cross_attention_frequency=crossing[1] if len(crossing) > 1 else max(layers, 1),
        queries=queries[1],
        heads=known_heads(checkpoint, "--qformer-heads", heads, HEADS, width),
        image_width=image_width,
    )


def qformer_weights(checkpoint: Checkpoint, sizes: QFormerSizes) -> dict[str, Tensor]:
    """Return `query_tokens` and `qformer.*` in float32."""
    return {_renamed(name): checkpoint.tensors[name].float() for name in sizes.shapes}


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    """Return the shapes of a Linear with bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _renamed(name: str) -> str:
    if name == "query_tokens":
        return name
    name = name.replace(NORM, "qformer.layernorm").replace("Qformer.bert.", "qformer.")
    return re.sub(r"attention\.self\.", "attention.attention.", name)
