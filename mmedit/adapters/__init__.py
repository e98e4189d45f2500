"""Model families. A new family is one file and one row here."""

from mmedit.adapters.base import Adapter, Inputs, PaddingSide, Stage
from mmedit.adapters.blip2 import Blip2Adapter

ADAPTERS: dict[str, type[Blip2Adapter]] = {
    model_type: adapter for adapter in (Blip2Adapter,) for model_type in adapter.model_types
}
"""From the `model_type` of a transformers config to the adapter."""

__all__ = ["ADAPTERS", "Adapter", "Blip2Adapter", "Inputs", "PaddingSide", "Stage"]
