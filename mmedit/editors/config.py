"""The base of the settings of editing methods."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel

from mmedit.adapters.base import Stage
from mmedit.errors import ConfigError, SiteError, shortened
from mmedit.settings import Names, Settings
from mmedit.training.checkpoints import dotted
from mmedit.vlm.interface import VLM


class EditorConfig(Settings):
    """Settings of one editing method."""

    after_fit: ClassVar[frozenset[str]] = frozenset()
    """Settings that fitting does not read: editors that differ in nothing else learn the same."""

    def of_fit(self) -> str:
        """Return the settings that fitting reads, as a text by which they are compared."""
        return self.model_dump_json(exclude=set(self.after_fit))


class SitesConfig(EditorConfig):
    """Settings of a method that edits weights."""

    where: Stage = "language"
    """The part of the VLM that is edited: language, bridge or vision."""
    sites: Names = ()
    """Names of the Linear weights to edit, `layers.{0..3}.{fc1,fc2}` for eight of them; empty: the
    model family's default sites in `where`.
    """

    def idle(self) -> dict[str, str]:
        return {"where": "beside sites, which lie where they lie"} if self.sites else {}

    def sites_of(self, vlm: VLM) -> tuple[str, ...]:
        """Return the sites on this VLM. Raises SiteError for a site that it does not have."""
        for site in self.sites:
            vlm.shape(site)
        sites = self.sites or vlm.sites(self.where)
        if not sites:
            raise SiteError(
                f"this VLM has no default sites in its {self.where}; edit another part "
                "(editor.where), or name sites (editor.sites)"
            )
        return sites


def layer_in(depth: int, layer: int | None, *, usual: int, unknown: str) -> int:
    """Return the decoder layer that `editor.layer` sets, or the usual one. Raises SiteError if a
    VLM of this depth does not have it, and with the text `unknown` where no layer is known.
    """
    if not depth:
        raise SiteError(unknown)
    found = usual if layer is None else layer
    if not 0 <= found < depth:
        raise SiteError(f"editor.layer is {found}; this VLM has the layers 0 to {depth - 1}")
    return found


def require_settings(config: object, expected: type[EditorConfig], method: str) -> None:
    """Raise ConfigError unless the settings are those of the method."""
    if not isinstance(config, expected):
        raise ConfigError(
            f"the settings of {method} are {shortened(config)}; expected {expected.__name__}(...)"
        )


def changed_settings(config: EditorConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults of the method, by dotted name."""
    fields = type(config).model_fields.items()
    usual = {name: field.get_default(call_default_factory=True) for name, field in fields}
    plain = {n: v.model_dump() if isinstance(v, BaseModel) else v for n, v in usual.items()}
    defaults, missing = dotted(plain), object()
    found = dotted(config.model_dump())
    return {name: v for name, v in found.items() if defaults.get(name, missing) != v}
