"""What `configs/vlm` says of the released checkpoints fits networks of their sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import full_size
import pytest
import tiny
import tiny_families
import torch
from torch import nn
from transformers import PreTrainedModel

from mmedit.adapters import adapter_for
from mmedit.adapters.base import STAGES
from mmedit.catalog import names
from mmedit.config import load_editor, load_vlm, load_vlm_file, named_vlms
from mmedit.editors.config import SitesConfig
from mmedit.errors import ConfigError

NAMED = named_vlms()
ELSEWHERE = {
    "embedded": "is loaded, sites and all, by most other tests",
    "photo": "its tower has no Linear, so no site (tests/convert/test_photo.py)",
    "minigpt4-llama2-7b": "the conversion registers its class (tests/convert/test_checkpoints.py)",
}


def test_every_named_vlm_is_tested_here_or_elsewhere():
    assert set(NAMED) == set(full_size.CONFIGS) | set(ELSEWHERE)


@pytest.mark.parametrize("name", full_size.CONFIGS)
def test_sites_are_linear_weights_of_the_released_network_in_their_stages(name: str):
    network = full_size.without_values(name)
    linears = {n for n, module in network.named_modules() if isinstance(module, nn.Linear)}
    adapter = adapter_for(network.config)(network, processor_of(network))
    sites = NAMED[name].sites
    assert set(sites) == set(STAGES)
    for stage in STAGES:
        assert linears.issuperset(sites[stage])
        assert set(adapter.sites(stage)) == set(sites[stage])
        assert {adapter.stage(site) for site in sites[stage]} == {stage}


@pytest.mark.parametrize("name", full_size.CONFIGS)
def test_sites_of_editors_are_linear_weights_of_the_released_network(name: str):
    network = full_size.without_values(name)
    linears = {n for n, module in network.named_modules() if isinstance(module, nn.Linear)}
    for editor in names("editor"):
        config = load_editor(editor, name).config
        if isinstance(config, SitesConfig):
            assert linears.issuperset(config.sites), editor


def test_the_sites_of_fastvlm_have_the_shapes_of_the_released_network():
    """FastViT-HD gives features of 3072 numbers at 16 x 16 places of 64 x 64 pixels."""
    for name, hidden, feed_forward in [("0.5b", 896, 4864), ("1.5b", 1536, 8960)]:
        network: Any = full_size.without_values(f"fastvlm-{name}")
        sites = NAMED[f"fastvlm-{name}"].sites
        shapes = {
            stage: {tuple(network.get_submodule(site).weight.shape) for site in sites[stage]}
            for stage in STAGES
        }
        assert shapes == {
            "language": {(feed_forward, hidden), (hidden, feed_forward)},
            "bridge": {(hidden, 3072), (hidden, hidden)},
            "vision": {(1536, 1536)},
        }
        pixels = torch.zeros(1, 3, 1024, 1024, device="meta")
        features = network.get_image_features(pixels, return_dict=True).pooler_output
        assert features.shape == (1, 256, hidden)


def processor_of(network: PreTrainedModel) -> Any:
    """Of a tiny model of the family; that of the released one differs in sizes and vocabulary."""
    family = network.config.model_type
    return tiny.build_processor() if family == "blip-2" else tiny_families.build_family(family)[1]


def test_braces_expand_as_in_a_shell():
    file = load_vlm_file("embedded", {"sites": {"language": ["a.{1,2}.{x,y}", "b"]}})
    assert file.sites["language"] == ("a.1.x", "a.1.y", "a.2.x", "a.2.y", "b")
    editor = load_editor("lora", "embedded", sites=["layers.{9..11}.fc2", "b"])
    assert editor.config.model_dump()["sites"] == (
        *("layers.9.fc2", "layers.10.fc2", "layers.11.fc2"),
        "b",
    )


def test_braces_that_stand_for_too_many_names_are_refused():
    with pytest.raises(ConfigError, match=r"stand for 100,000,000 names; expected at most"):
        load_editor("lora", "embedded", sites=["{0..9999}.{0..9999}"])


def test_named_vlm_that_must_be_converted_first_tells_the_command(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_vlm("minigpt4-vicuna-7b")
    text = str(raised.value)
    assert text.startswith(
        "vlm minigpt4-vicuna-7b: the folder models/minigpt4-vicuna-7b does not exist. "
        "Make it from the "
        "original files (docs/converting.md): mmedit convert minigpt4 --vision eva_vit_g.pth "
    )
    assert text.endswith("or name yours: --set vlm.name_or_path=DIR")


def test_memory_is_limited_by_a_gpus_number_or_a_name():
    file = load_vlm_file("embedded", {"max_memory": {"0": "20GiB", "cpu": "1GiB"}})
    assert file.max_memory == {0: "20GiB", "cpu": "1GiB"}


def test_what_is_given_comes_before_what_the_file_says():
    vlm = load_vlm("embedded", dtype="bfloat16", sites={"vision": []})
    assert str(vlm.adapter.network.dtype) == "torch.bfloat16"
    assert vlm.sites("bridge") == NAMED["embedded"].sites["bridge"]
    assert vlm.sites("vision") == vlm.adapter.sites("vision")
