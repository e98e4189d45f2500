"""`mmedit export`: from saved edits to a folder that transformers or peft opens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import exports
import pytest
from command_line import Mmedit

from mmedit.cases import Example
from mmedit.config import load_editor
from mmedit.vlm.network import NetworkVLM

TEXT = Example(prompt="Which shape is blue?", target="circle")


@pytest.fixture(scope="module")
def saved(vlm: NetworkVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two edits of weights and one of IKE, saved, on the embedded VLM."""
    folder = tmp_path_factory.mktemp("edits")
    load_editor("ft", vlm, steps=8, lr=1e-3).apply(vlm, [TEXT]).save(folder / "dense")
    exports.with_edit(vlm, exports.low_rank(vlm)).save(folder / "low")
    load_editor("ike", vlm, k=0).apply(vlm, [TEXT]).save(folder / "ike")
    return folder


def test_an_edit_becomes_a_transformers_folder(mmedit_: Mmedit, saved: Path, tmp_path: Path):
    result = mmedit_(
        "export", "--edit", saved / "dense", "--to", "transformers", "--out", tmp_path / "out",
        "--locality", 4, "--check-in", "float32",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "opened in largest logit difference requests kept other answers changed" in result.out
    assert "float32" in result.out
    assert "1 of 1" in result.out
    assert "of 5 " in result.out
    assert f'AutoModelForImageTextToText.from_pretrained("{tmp_path / "out"}")' in result.out
    report = json.loads((tmp_path / "out" / "mmedit-export.json").read_text())
    assert report["is_kept"] is True
    assert report["edits"][0]["requests"][0]["target"] == "circle"
    assert [check["unrelated"] for check in report["checks"]] == [4]


def test_edits_become_adapters(mmedit_: Mmedit, saved: Path, tmp_path: Path):
    pytest.importorskip("peft", reason="peft is not installed (extra `peft`)")
    result = mmedit_(
        "export", "--edit", saved / "dense", "--edit", saved / "low", "--to", "peft", "--each",
        "--rank", 192, "--locality", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert re.search(r"rank \d+; the truncation left out 0\.0\d% of the edit", result.out)
    assert f'PeftModel.from_pretrained(base, "{tmp_path / "out" / "dense"}")' in result.out
    for name in ("dense", "low"):
        assert (tmp_path / "out" / name / "adapter_model.safetensors").is_file()


def test_an_edit_that_is_lost_is_shown_and_ends_with_an_error(mmedit_: Mmedit, tmp_path: Path):
    from mmedit.vlm.loading import load_vlm

    source = exports.save_fragile(tmp_path / "vlm")
    exports.fragile_edit(load_vlm(source)).save(tmp_path / "edit")
    result = mmedit_(
        "export", "--edit", tmp_path / "edit", "--to", "transformers", "--dtype", "bfloat16",
        "--locality", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "bfloat16" in result.out
    assert "0 of 1" in result.out
    assert "error: the export in bfloat16 lost the edit and was removed" in result.err
    assert not (tmp_path / "out").exists()


def test_a_wrapper_is_refused_before_a_model_is_loaded(
    mmedit_: Mmedit, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mmedit.cli.export._edited", lambda *_: pytest.fail("loaded"))
    out = tmp_path / "out"
    result = mmedit_("export", "--edit", saved / "ike", "--to", "peft", "--out", out)
    assert result.code == 2
    assert "was made by IKE" in result.err
    assert "mmedit serve" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "onnx"), "no form of an export named 'onnx'"),
        (("--to", "transformers", "--dtype", "float61"), "Did you mean 'float16'?"),
        (("--to", "peft", "--dtype", "float16"), "are for --to transformers"),
        (("--to", "transformers", "--each"), "--rank and --each are for --to peft"),
        (("--to", "transformers", "--shard-size", "5 gigs"), "--shard-size is '5 gigs'"),
        (("--to", "transformers", "--set", "editor.lr=1"), "editor.* has no effect"),
        (("--to", "transformers", "--check-in", "half"), "no dtype of an export named 'half'"),
        (("--to", "transformers", "--edit", "nowhere"), "nowhere"),
    ],
)
def test_wrong_options_are_one_line(
    options: tuple[str, ...], message: str, mmedit_: Mmedit, saved: Path, tmp_path: Path
):
    out = tmp_path / "out"
    result = mmedit_("export", "--edit", saved / "dense", "--out", out, *options)
    assert result.code == 2
    assert message in result.err
    assert not out.exists()
