"""Settings of M-ORE and ScopeEdit."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mmedit.editors.config import SitesConfig

Keys = Literal["predicting", "published"]
"""Positions whose mean code is a key: those that predict the answer, or, as in the published code,
those of the answer's own tokens, which miss the first one that predicts and have one too many.
"""


class MOREConfig(SitesConfig):
    """Settings of M-ORE. Defaults are the paper's for LLaVA-1.5."""

    after_fit: ClassVar[frozenset[str]] = frozenset(
        {"alpha", "lr", "damping", "top_k", "steps", "shared_lr", "shared_damping"}
        | {"shared_top_k", "tau", "beta"}
    )
    rank: int = Field(default=512, ge=1)
    """Rows r of A: directions of a Linear's input that an edit reads. M-ORE: 512."""
    alpha: float = Field(default=1024, gt=0)
    """α: the scale of Δ is s = α / (rank + shared_rank). M-ORE: 1024, s = 2."""
    lr: float = Field(default=0.1, gt=0)
    """η, the length of a step. M-ORE: 0.1."""
    damping: float = Field(default=2000, gt=0)
    """λ: a direction is damped to λ / (λ + the sum of its squared keys). M-ORE: 2000."""
    steps: int = Field(default=5, ge=1)
    """Steps per edit. M-ORE: 5."""
    top_k: int = Field(default=7, ge=1)
    """Number of groups, the layers with the largest gradients, that a step writes. M-ORE: 7."""
    basis: Literal["orthogonal", "data"] = "orthogonal"
    """A: random orthonormal rows; data: the leading directions of the site's inputs over the
    training questions, half text and half image tokens.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of a random A."""
    keys: Keys = "predicting"
    """Positions of the keys: predicting, or published, the positions of the answer itself."""
    locality_keys: int = Field(default=0, ge=0)
    """Locality questions of training cases whose keys are damped before the first edit."""
    shared_rank: int = Field(default=0, ge=0)
    """Rows of A that are shared by text and image (ScopeEdit: 64, beside `rank` 448); 0: M-ORE."""
    shared_lr: float = Field(default=1.0, gt=0)
    """Length of a step of the shared rows. ScopeEdit: 1."""
    shared_damping: float = Field(default=1.0, gt=0)
    """λ of the shared rows. ScopeEdit: 1."""
    shared_top_k: int = Field(default=6, ge=1)
    """Number of groups of the language model whose shared rows a step writes. ScopeEdit: 6."""
    tau: float = 0.2
    """τ, the cosine between text and image at which the gate is half open. ScopeEdit: 0.2."""
    beta: float = Field(default=10, gt=0)
    """β, the steepness of the gate. ScopeEdit: 10."""

    @property
    def rows(self) -> int:
        """Number of rows of A."""
        return self.rank + self.shared_rank

    @property
    def scale(self) -> float:
        """The scale s of Δ(x) = s · B A x."""
        return self.alpha / self.rows

    def idle(self) -> dict[str, str]:
        found = super().idle()
        if self.basis == "data":
            found["seed"] = "with basis=data"
        if not self.shared_rank:
            names = ("shared_lr", "shared_damping", "shared_top_k", "tau", "beta")
            found |= dict.fromkeys(names, "with shared_rank=0")
        return found
