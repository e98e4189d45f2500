"""Settings: frozen pydantic models in which an unknown key is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """The base of all settings that a user may write in YAML or after `--set`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
