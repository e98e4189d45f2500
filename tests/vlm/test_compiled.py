"""`vlm.compile` makes the layers of vision and bridge faster and leaves what they give as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
import torch
from closeness import assert_close
from torch._dynamo.testing import CompileCounter

from mmedit.adapters import adapter_for, compiled
from mmedit.adapters.base import Adapter
from mmedit.adapters.compiled import compile_layers, is_compiled, require_compiler
from mmedit.cases import Example
from mmedit.config import load_vlm_file
from mmedit.deltas import Dense
from mmedit.errors import ModelError
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM


def tiny_adapter(family: str) -> Adapter:
    network, processor = tiny_families.build_family(family)
    network.requires_grad_(False)
    return adapter_for(network.config)(network, processor)


def tiny_blip2() -> Adapter:
    processor = tiny.build_processor()
    network = tiny.build_network(processor).requires_grad_(False)
    return adapter_for(network.config)(network, processor)


def encoded(adapter: Adapter, number: int) -> list[torch.Tensor]:
    images = [tiny.random_image(seed) for seed in range(number)]
    examples = [Example(prompt="what?", target="no", image=image) for image in images]
    with torch.no_grad():
        return adapter.encode([adapter.see(example) for example in examples])


def counting(adapter: Adapter) -> CompileCounter:
    """Compile without C++, and count the forms that are compiled."""
    counter = CompileCounter()
    compile_layers(adapter, partial(torch.compile, backend=counter))
    return counter


@pytest.mark.parametrize("family", ["llava", "fast_vlm"])
def test_layers_of_a_kind_and_all_sizes_share_two_compiled_forms(family: str):
    """The whole tower of FastVLM is one layer."""
    torch.compiler.reset()
    adapter = tiny_adapter(family)
    plain = [encoded(adapter, number) for number in (4, 3, 2)]
    counter = counting(adapter)
    for number, expected in zip((4, 3, 2), plain, strict=True):
        for found, image in zip(encoded(adapter, number), expected, strict=True):
            assert_close(found, image)
    assert counter.frame_count == 2
    torch.compiler.reset()


@pytest.mark.parametrize("family", ["blip2", "fast_vlm"])
def test_a_layer_that_is_edited_or_needs_gradients_runs_as_it_was_loaded(family: str):
    ran: list[str] = []

    def compiler(forward: Any) -> Any:
        return lambda *args, **kwargs: (ran.append("compiled"), forward(*args, **kwargs))[1]

    adapter = tiny_blip2() if family == "blip2" else tiny_adapter(family)
    vlm = NetworkVLM(adapter)
    layers = len(list(compiled.repeated_layers(adapter)))
    compile_layers(adapter, compiler)
    vlm.predict(tiny.SEEN)
    assert ran == ["compiled"] * layers
    (site,) = vlm.sites("vision")
    ran.clear()
    with torch.no_grad():
        vlm.with_deltas({site: Dense(torch.full(vlm.shape(site), 0.01))}).predict(tiny.SEEN)
    assert ran == ["compiled"] * (layers - 1)
    ran.clear()
    vlm.capture(tiny.SEEN, [site])
    assert ran == []


def test_the_layers_of_the_language_model_are_left_alone():
    adapter = tiny_blip2()
    compile_layers(adapter, lambda forward: forward)
    language = adapter.network.language_model
    assert is_compiled(adapter.network)
    assert not is_compiled(language)


def test_a_run_notes_that_vision_and_bridge_are_compiled():
    adapter = tiny_blip2()
    vlm = NetworkVLM(adapter)
    assert "compiled" not in vlm.protocol
    compile_layers(adapter, lambda forward: forward)
    assert vlm.protocol["compiled"] == "vision and bridge"


@pytest.mark.parametrize("variable", ["", "no-such-compiler -O3"])
def test_a_missing_compiler_is_an_error_before_anything_is_loaded(
    variable: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", variable)
    monkeypatch.setenv("PATH", "/nowhere")
    for load in (load_vlm, lambda name, compile: load_vlm_file(name, {"compile": compile})):
        with pytest.raises(ModelError, match=r"needs a C\+\+ compiler, and .* is not installed"):
            load("embedded", compile=True)


def test_missing_headers_of_python_are_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(ModelError, match=r"/nowhere/Python.h does not exist"):
        require_compiler()


def test_weights_that_accelerate_moves_are_refused():
    adapter = tiny_blip2()
    adapter.network.vision_model.encoder.layers[0]._hf_hook = object()
    with pytest.raises(ModelError, match="on one device"):
        compile_layers(adapter)


def can_compile() -> bool:
    try:
        require_compiler()
    except ModelError:
        return False
    return True


COMPARED = """
import sys
import tiny
import torch
from closeness import assert_close
from mmedit import Example, load_vlm

plain, fast = load_vlm("embedded"), load_vlm("embedded", compile=True)
examples = [Example(prompt="a", target="b", image=tiny.random_image(seed)) for seed in range(4)]
with torch.no_grad():
    expected, found = (
        vlm.adapter.vision([vlm.adapter.see(example) for example in examples])
        for vlm in (plain, fast)
    )
for one, other in zip(found, expected, strict=True):
    assert_close(one, other)
"""


# A process of its own: torch reads the build settings through distutils, and which distutils
# setuptools gives it, or whether it fails, depends on what the process imported before.
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs g++ and the headers of Python")
def test_compiled_by_cpp_the_built_in_vlm_gives_the_same_image_features():
    support = str(Path(__file__).resolve().parents[1] / "support")
    paths = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", COMPARED],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
