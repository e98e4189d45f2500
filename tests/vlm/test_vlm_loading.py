from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from closeness import assert_close, rounding
from safetensors.torch import load_file, save_file

from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.deltas import Dense
from mmedit.errors import ModelError, SiteError, UnknownNameError
from mmedit.vlm.loading import load_vlm, resolve_vlm
from mmedit.vlm.network import NetworkVLM


def folder_with_config(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_weights_are_frozen_and_in_evaluation_mode(tiny_vlm: NetworkVLM):
    network = tiny_vlm.adapter.network
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_weights_are_those_of_the_folder(tiny_vlm: NetworkVLM):
    wanted = tiny.build_network(tiny.build_processor()).state_dict()
    found = tiny_vlm.adapter.network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_nearly_as_float32_does(
    tiny_folder: Path, tiny_vlm: NetworkVLM, dtype: torch.dtype
):
    half = load_vlm(tiny_folder, dtype=dtype)
    found, wanted = half.predict(tiny.MIXED), tiny_vlm.predict(tiny.MIXED)
    assert found.logits.dtype == dtype
    for row in range(len(tiny.MIXED)):
        ours, expected = tiny.of_text(found, row), tiny.of_text(wanted, row)
        assert_close(ours, expected)
        best, second = expected.topk(2).values.T
        clear = best - second > 2 * rounding(expected, found=ours)  # no near tie
        assert torch.equal(ours.argmax(-1)[clear], expected.argmax(-1)[clear])
    assert len(half.generate(tiny.MIXED, max_new_tokens=2)) == len(tiny.MIXED)


def test_fingerprint_is_that_of_the_unedited_weights(tiny_folder: Path, tmp_path: Path):
    vlm, again = load_vlm(tiny_folder), load_vlm(tiny_folder)
    other = load_vlm(tiny.save_model(tmp_path, seed=1))
    assert vlm.identity == again.identity == again.with_deltas({}).identity
    assert vlm.identity.weights != other.identity.weights


def test_default_sites_are_the_last_layers_of_each_stage(tiny_vlm: NetworkVLM):
    decoder, qformer = "language_model.model.decoder.layers", "qformer.encoder.layer"
    assert tiny_vlm.sites("language") == tuple(
        f"{decoder}.{layer}.{name}" for layer in (0, 1, 2) for name in ("fc1", "fc2")
    )
    assert tiny_vlm.sites("bridge") == tuple(
        f"{qformer}.{layer}.output_query.dense" for layer in (0, 1)
    )
    assert tiny_vlm.sites("vision") == ("vision_model.encoder.layers.1.mlp.fc2",)


def test_the_embedded_vlm_is_a_folder_inside_the_package():
    assert (Path(resolve_vlm("embedded")) / "config.json").is_file()


def test_hub_id_is_passed_on_and_nothing_is_loaded():
    assert resolve_vlm("Salesforce/blip2-opt-2.7b") == "Salesforce/blip2-opt-2.7b"


def test_unknown_name_is_an_error_that_tells_the_nearest():
    with pytest.raises(UnknownNameError) as raised:
        load_vlm("embeded")
    assert str(raised.value) == (
        "no VLM (nor model folder, nor hub id like owner/name) named 'embeded'. "
        "Did you mean 'embedded'? There are: embedded, photo."
    )


def test_folder_that_does_not_exist_is_an_error_and_no_hub_id(tmp_path: Path):
    for name in (str(tmp_path / "nowhere"), "./nowhere", "../nowhere/model"):
        with pytest.raises(UnknownNameError, match=r"no VLM \(nor model folder"):
            load_vlm(name)


def test_file_in_place_of_a_folder_is_an_error(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelError) as raised:
        load_vlm(path)
    assert str(raised.value) == f"{path} is a file; expected a transformers model folder"


def test_folder_without_config_is_an_error(tmp_path: Path):
    with pytest.raises(ModelError) as raised:
        load_vlm(tmp_path)
    wanted = f"{tmp_path} has no config.json; expected a transformers model folder"
    assert str(raised.value) == wanted


def test_model_type_without_adapter_is_an_error_that_lists_those_there_are(tmp_path: Path):
    with pytest.raises(ModelError) as raised:
        load_vlm(folder_with_config(tmp_path, model_type="bert"))
    assert str(raised.value) == (
        f"{tmp_path} cannot be loaded: its model type 'bert' is not an image-text-to-text model of "
        "transformers; there are adapters for blip-2, fast_vlm, instructblip, llava, "
        "llava_next, llava_onevision, minigpt4, paligemma, qwen2_5_vl, qwen2_vl, qwen3_vl, and for "
        "every other model that AutoModelForImageTextToText loads"
    )


def test_model_type_that_transformers_does_not_know_is_an_error(tmp_path: Path):
    with pytest.raises(ModelError, match=rf"^{tmp_path} cannot be loaded: .*blip-17"):
        load_vlm(folder_with_config(tmp_path, model_type="blip-17"))


def test_t5_language_model_is_refused(tmp_path: Path):
    tiny.save_model(tmp_path, language="t5")
    with pytest.raises(ModelError) as raised:
        load_vlm(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} cannot be loaded: its language model is an encoder-decoder (T5), which is "
        "not supported; use a checkpoint with a decoder-only one, for example blip2-opt-2.7b"
    )


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def tear_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def widen_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("breakage", [cut_weights, tear_config, remove_weights, widen_config])
def test_broken_folder_is_an_error_that_names_it(tmp_path: Path, breakage: Callable[[Path], None]):
    breakage(tiny.save_model(tmp_path))
    with pytest.raises(ModelError, match=rf"^{tmp_path} cannot be loaded: "):
        load_vlm(tmp_path)


def test_missing_weights_are_an_error_and_not_random(tmp_path: Path):
    weights = tiny.save_model(tmp_path) / "model.safetensors"
    kept = load_file(weights)
    del kept["query_tokens"]
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError) as raised:
        load_vlm(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} cannot be loaded: its files lack 1 of the network's weights, "
        "for example query_tokens, which would be random"
    )


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickled_weights_are_refused(tmp_path: Path):
    pickle_weights(tiny.save_model(tmp_path))
    with pytest.raises(ModelError, match=r"pickled weights \(.bin\).*save the model as safetens"):
        load_vlm(tmp_path)


def add_code(folder: Path) -> Path:
    """As a hub repository brings its own classes; running them leaves a file."""
    ran = folder / "ran"
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(ran)!r}).touch()\n"
        "from transformers import Blip2Config as OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    return ran


def test_code_of_a_checkpoint_does_not_run_unless_it_is_trusted(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    ran = add_code(tiny.save_model(tmp_path / "model"))
    with pytest.raises(ModelError, match="load with trust_remote_code=True"):
        load_vlm(tmp_path / "model")
    assert not ran.exists()


def test_adapter_is_chosen_by_name_or_class(tiny_folder: Path):
    for adapter in ("blip2", Blip2Adapter):
        assert type(load_vlm(tiny_folder, adapter=adapter).adapter) is Blip2Adapter
    with pytest.raises(UnknownNameError, match=r"no adapter named 'blip'. Did you mean 'blip2'\?"):
        load_vlm(tiny_folder, adapter="blip")


def test_adapter_of_another_family_is_an_error_before_the_weights_are_read(tiny_folder: Path):
    with pytest.raises(ModelError) as raised:
        load_vlm(tiny_folder, adapter="llava")
    assert str(raised.value) == (
        f"{tiny_folder} cannot be loaded: the adapter 'llava' serves models of type llava, and "
        "this one is of type 'blip-2'; leave the adapter out, or use 'auto'"
    )


def test_a_language_model_is_not_a_vlm_with_any_adapter(tmp_path: Path):
    with pytest.raises(ModelError, match="its model type 'bert' is not an image-text-to-text"):
        load_vlm(folder_with_config(tmp_path, model_type="bert"), adapter="auto")


@pytest.mark.parametrize(
    ("model_type", "missing"),
    [
        ("mllama", "lacks get_image_features and mm_encoder_outputs in forward"),
        ("florence2", "lacks mm_encoder_outputs in forward"),
    ],
)
def test_family_that_gives_no_features_is_refused_before_its_weights_are_read(
    tmp_path: Path, model_type: str, missing: str
):
    with pytest.raises(ModelError, match=f"{missing}, which mmedit needs to read and to pass"):
        load_vlm(folder_with_config(tmp_path, model_type=model_type))


def test_config_of_the_wrong_types_is_an_error_that_names_the_folder(tmp_path: Path):
    folder = tiny.save_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "abc"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"^{tmp_path} cannot be loaded: .*hidden_size"):
        load_vlm(folder)


def test_config_without_image_token_is_an_error(tmp_path: Path):
    folder = tiny.save_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["image_token_index"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="its config has no image_token_index"):
        load_vlm(folder)


def test_sites_of_ones_own_replace_the_default_ones(tiny_folder: Path, tiny_vlm: NetworkVLM):
    mine = tiny_vlm.sites("language")[:1]
    vlm = load_vlm(tiny_folder, sites={"language": mine})
    assert vlm.sites("language") == mine
    assert vlm.sites("bridge") == tiny_vlm.sites("bridge")
    assert vlm.with_deltas({}).sites("language") == mine
    with pytest.raises(SiteError, match=f"Did you mean '{mine[0]}'"):
        load_vlm(tiny_folder, sites={"language": (mine[0].replace("layers", "layer"),)})


def test_a_vlm_keeps_the_name_that_it_was_loaded_by(tiny_folder: Path):
    assert load_vlm("embedded").name == "embedded"
    vlm = load_vlm(tiny_folder)
    assert vlm.name == str(tiny_folder)
    assert load_vlm(tiny_folder, name="tiny").with_deltas({}).select([0]).name == "tiny"
    assert NetworkVLM(vlm.adapter).name == ""


def test_a_keyword_that_loading_does_not_know_is_an_error(tiny_folder: Path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtpye'"):
        load_vlm(tiny_folder, dtpye="float16")  # pyright: ignore[reportCallIssue]


def test_repr_tells_a_vlm_and_its_edits_in_a_line(tiny_folder: Path):
    vlm = load_vlm(tiny_folder, name="tiny")
    count = sum(parameter.numel() for parameter in vlm.adapter.network.parameters())
    assert repr(vlm) == (
        f"VLM('tiny'; family blip-2; {count:,} parameters; float32; on cpu; "
        "edit sites: 1 vision, 2 bridge, 6 language; not edited)"
    )
    site = vlm.sites("language")[0]
    change = torch.zeros(3, *vlm.shape(site))
    assert repr(vlm.with_deltas({site: Dense(change[0])})).endswith("; edited: Dense at 1 site)")
    edited = vlm.with_deltas({site: Dense(change)})
    assert repr(edited).endswith("; edited: Dense at 1 site, 3 separate edits)")
