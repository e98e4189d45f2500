from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmedit.cache import TensorCache

SIZE = 400
"""Bytes of one tensor here."""


def value_of(key: str) -> Tensor:
    return torch.full((SIZE // 4,), float(len(key)))


class Asker:
    """Looks keys up in a cache and notes which of them had to be computed."""

    def __init__(self, cache: TensorCache) -> None:
        self.cache = cache
        self.computed: list[str] = []

    def __call__(self, *keys: str) -> list[Tensor]:
        return self.cache.lookup(keys, self._compute(keys))

    def _compute(self, keys: Sequence[str]) -> Callable[[Sequence[int]], list[Tensor]]:
        def compute(positions: Sequence[int]) -> list[Tensor]:
            self.computed += [keys[position] for position in positions]
            return [value_of(keys[position]) for position in positions]

        return compute


def files(directory: Path) -> set[str]:
    return {file.stem for file in directory.glob("*.safetensors")}


def test_each_distinct_key_is_computed_once():
    ask = Asker(TensorCache())
    ask("a", "bb", "a")
    ask("bb", "ccc", "ccc")
    assert ask.computed == ["a", "bb", "ccc"]


def test_values_come_in_the_order_of_the_keys():
    ask = Asker(TensorCache())
    ask("bb")
    assert [int(value[0]) for value in ask("ccc", "a", "bb", "ccc")] == [3, 1, 2, 3]


def test_what_is_missing_is_computed_in_one_call():
    calls: list[list[int]] = []

    def compute(positions: Sequence[int]) -> list[Tensor]:
        calls.append(list(positions))
        return [torch.zeros(1) for _ in positions]

    TensorCache().lookup(["a", "b", "a", "c"], compute)
    assert calls == [[0, 1, 3]]


def test_nothing_is_computed_when_nothing_is_missing():
    ask = Asker(TensorCache())
    ask("a")
    ask.cache.lookup(["a", "a"], lambda _: pytest.fail("computed again"))
    assert ask.cache.lookup([], lambda _: pytest.fail("computed nothing")) == []


def test_counters_tell_computed_from_looked_up():
    ask = Asker(TensorCache())
    ask("a", "bb", "a")
    ask("a")
    assert (ask.cache.misses, ask.cache.hits) == (2, 2)


def test_memory_keeps_what_was_used_last_within_its_bytes():
    ask = Asker(TensorCache(memory_bytes=2 * SIZE))
    ask("a")
    ask("bb")
    ask("a")
    ask("ccc")  # drops bb, which was used before a
    ask.computed.clear()
    ask("a", "ccc")
    assert ask.computed == []
    ask("bb")
    assert ask.computed == ["bb"]


def test_a_call_gets_all_its_values_even_where_they_do_not_fit():
    ask = Asker(TensorCache(memory_bytes=SIZE))
    assert [int(value[0]) for value in ask("a", "bb", "ccc")] == [1, 2, 3]


def test_rows_of_one_batch_do_not_hold_the_whole_batch_in_memory():
    cache = TensorCache()
    (row,) = cache.lookup(["a"], lambda _: [torch.zeros(64, 100)[0]])
    assert row.untyped_storage().nbytes() == SIZE


def test_cached_values_carry_no_gradient():
    leaf = torch.ones(3, requires_grad=True)
    (value,) = TensorCache().lookup(["a"], lambda _: [leaf * 2])
    assert not value.requires_grad


def test_values_outlive_the_process_on_disk(tmp_path: Path):
    first = Asker(TensorCache(directory=tmp_path / "features"))
    written = first("a", "bb")
    second = Asker(TensorCache(directory=tmp_path / "features"))
    read = second("bb", "a")
    assert second.computed == []
    assert torch.equal(read[0], written[1])
    assert torch.equal(read[1], written[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_disk_keeps_the_dtype(tmp_path: Path, dtype: torch.dtype):
    value = torch.arange(3).to(dtype)
    TensorCache(directory=tmp_path).lookup(["a"], lambda _: [value])
    (read,) = TensorCache(directory=tmp_path).lookup(["a"], lambda _: [])
    assert read.dtype == dtype
    assert torch.equal(read, value)


def test_disk_serves_what_memory_dropped(tmp_path: Path):
    ask = Asker(TensorCache(memory_bytes=SIZE, directory=tmp_path))
    ask("a", "bb", "ccc")
    ask("a", "bb", "ccc")
    assert ask.computed == ["a", "bb", "ccc"]


def test_disk_drops_the_oldest_files_beyond_its_bytes(tmp_path: Path):
    Asker(TensorCache(directory=tmp_path))("a", "bb")
    size = (tmp_path / "a.safetensors").stat().st_size
    os.utime(tmp_path / "a.safetensors", (1, 1))
    os.utime(tmp_path / "bb.safetensors", (2, 2))
    Asker(TensorCache(directory=tmp_path, disk_bytes=2 * size))("ccc")
    assert files(tmp_path) == {"bb", "ccc"}


def test_torn_file_is_computed_again_and_replaced(tmp_path: Path):
    Asker(TensorCache(directory=tmp_path))("a")
    file = tmp_path / "a.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    ask = Asker(TensorCache(directory=tmp_path))
    (value,) = ask("a")
    assert ask.computed == ["a"]
    assert torch.equal(value, value_of("a"))
    assert file.read_bytes() == whole


def test_no_half_written_file_is_left_behind(tmp_path: Path):
    Asker(TensorCache(directory=tmp_path))("a", "bb")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "bb.safetensors"]
