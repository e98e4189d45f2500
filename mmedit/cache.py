"""A cache of tensors that are computed once and then looked up, such as frozen image features.

It maps keys (content hashes) to tensors. It keeps recently used tensors in memory and, if it has a
directory, all of them on disk, both bounded in bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.storage import replaced

GIGABYTE = 2**30


class TensorCache:
    """A cache in memory and on disk that drops the least recently used tensors first.

    It is not a value: all VLMs over one network share it. `misses` is the number of tensors that
    were computed, `hits` the number that were found.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 4 * GIGABYTE,
        directory: Path | None = None,
        disk_bytes: int = 64 * GIGABYTE,
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._memory_bytes = memory_bytes
        self._used = 0
        self._directory = directory
        self._disk_bytes = disk_bytes

    @property
    def bytes_used(self) -> int:
        """Size of the tensors in memory, in bytes."""
        return self._used

    @property
    def on_disk(self) -> bool:
        """Whether tensors are kept in a directory, for other processes to find."""
        return self._directory is not None

    def lookup(
        self, keys: Sequence[str], compute: Callable[[Sequence[int]], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Return one tensor per key.

        `compute` is called at most once, with the first positions of the distinct missing keys.
        """
        found: dict[str, Tensor] = {}
        missing: dict[str, int] = {}
        for position, key in enumerate(keys):
            if key in found or key in missing:
                continue
            tensor = self._read(key)
            if tensor is None:
                missing[key] = position
            else:
                found[key] = tensor
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        if missing:
            computed = compute(list(missing.values()))
            for key, tensor in zip(missing, computed, strict=True):
                found[key] = tensor.detach().clone()  # a row of a batch would keep the batch alive
                self._write(key, found[key])
        return [found[key] for key in keys]

    def get(self, key: str) -> Tensor | None:
        """Return the tensor of a key; None if there is none."""
        found = self._read(key)
        self.hits += found is not None
        return found

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor that was computed. It must not be a view of a larger one."""
        self.misses += 1
        self._write(key, tensor)

    def _read(self, key: str) -> Tensor | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        if self._directory is None:
            return None
        try:
            tensor = load_file(self._file(self._directory, key))["value"]
        except (FileNotFoundError, SafetensorError):
            return None
        self._remember(key, tensor)
        return tensor

    def _write(self, key: str, tensor: Tensor) -> None:
        self._remember(key, tensor)
        if self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._file(self._directory, key)
        with replaced(file) as partial:
            save_file({"value": tensor.contiguous()}, partial)
        self._prune_disk(self._directory)

    def _remember(self, key: str, tensor: Tensor) -> None:
        self._memory[key] = tensor
        self._used += tensor.nbytes
        while self._used > self._memory_bytes and len(self._memory) > 1:
            _, dropped = self._memory.popitem(last=False)
            self._used -= dropped.nbytes

    def _prune_disk(self, directory: Path) -> None:
        files = sorted(directory.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        used = sum(file.stat().st_size for file in files)
        for file in files[:-1]:
            if used <= self._disk_bytes:
                return
            used -= file.stat().st_size
            file.unlink(missing_ok=True)

    @staticmethod
    def _file(directory: Path, key: str) -> Path:
        return directory / f"{key}.safetensors"
