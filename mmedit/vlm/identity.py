"""The identity of a VLM, which fitted editors and runs belong to."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal, NamedTuple

Part = Literal["family", "config", "weights", "processing"]


class Identity(NamedTuple):
    """All that the answers of a VLM depend on, by its family and by hashes."""

    family: str
    """The `model_type` of its config."""
    config: str
    """A hash of the config."""
    weights: str
    """A hash of all weights."""
    processing: str = ""
    """A hash of tokenizer, prompt format, image processing and the ends of answers; "" if an
    earlier version of mmedit saved the identity. Its first digit is a version.
    """

    def difference(self, other: Identity) -> Part | None:
        """Return the first part that differs; None if both are the same as far as both tell."""
        for part in ("family", "config", "weights"):
            if getattr(self, part) != getattr(other, part):
                return part
        ours, theirs = (identity.processing.partition("-") for identity in (self, other))
        return "processing" if ours[0] == theirs[0] and ours != theirs else None

    def described(self, other: Identity) -> str | None:
        """Return in words what VLM `other` is, seen from this one; None if they are the same."""
        part = self.difference(other)
        here, there = self, other
        return (
            part
            and {
                "family": f"a {there.family!r} model, and this is a {here.family!r}",
                "config": (
                    f"a {there.family} of another config ({there.config[:12]}, here "
                    f"{here.config[:12]})"
                ),
                "weights": (
                    f"a {there.family} of the same config with other weights, or the same in "
                    f"another number format ({there.weights[:12]}, here {here.weights[:12]})"
                ),
                "processing": (
                    f"a {there.family} of the same weights with another tokenizer, chat template, "
                    f"image processor or end tokens ({there.processing[:12]}, here "
                    f"{here.processing[:12]})"
                ),
            }[part]
        )

    @property
    def hash(self) -> str:
        """The hash of the weights, a hyphen, and a hash of everything else."""
        rest = "\0".join((self.family, self.config, self.processing))
        return f"{self.weights}-{blake2b(rest.encode(), digest_size=8).hexdigest()}"
