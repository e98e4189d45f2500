"""`mmedit trace` in a terminal."""

from __future__ import annotations

import pytest
from traced import made_record, made_trace

import mmedit.vlm.loading
from mmedit.trace.settings import TraceSettings


def test_the_command_traces_and_prints_the_best_layers(mmedit_, tmp_path):
    result = mmedit_(
        "trace", "--limit", "2", "--draws", "1", "--component", "block",
        "--corruption", "image_noise", "--rows", "7", "--out", tmp_path / "t",
    )  # fmt: skip
    assert result.code == 0
    assert "embedded on easyvqa, requests: image noise, n = 2" in result.out
    assert '"rows": 7' in (tmp_path / "t" / "manifest.json").read_text(encoding="utf-8")
    assert "last prompt token" in result.out
    assert (tmp_path / "t" / "trace.html").is_file()
    assert not (tmp_path / "t" / "heat-mlp.png").exists()


def test_locality_probes_without_image_are_traced_by_noise_on_their_text(mmedit_, tmp_path):
    result = mmedit_(
        "trace", "--limit", "2", "--draws", "1", "--questions", "locality", "--component", "block",
        "--corruption", "text_noise", "--out", tmp_path / "t",
    )  # fmt: skip
    assert result.code == 0
    assert "embedded on easyvqa, locality: text noise, n = 2" in result.out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--corruption", "image_nose"), "Did you mean 'image_noise'?"),
        (("--component", "mpl"), "Did you mean 'mlp'?"),
        (("--corruption", "image_swap", "--draws", "3"), "leave it out"),
        (("--set", "editor.lr=1"), "editor.* has no effect"),
    ],
)
def test_a_wrong_option_is_refused_before_the_vlm_is_loaded(mmedit_, tmp_path, wrong, said):
    result = mmedit_("trace", *wrong, "--out", tmp_path / "t")
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("there", ["a file", "another folder", "another seed", "a damaged line"])
def test_a_folder_that_cannot_take_the_trace_is_refused_before_the_vlm_is_loaded(
    mmedit_, tmp_path, monkeypatch, there
):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", load)
    out = tmp_path / "t"
    said = {"a file": "cannot make the folder", "another folder": "holds no trace"}
    if there == "a file":
        out.write_text("x")
    else:
        out.mkdir()
    if there == "another folder":
        (out / "notes.txt").write_text("x")
    elif there in ("another seed", "a damaged line"):
        said |= {"another seed": "setting seed differ", "a damaged line": "row 1: "}
        seed = int(there == "another seed")
        settings = TraceSettings(seed=seed)
        earlier = made_trace(made_record("a", clean=0.9, corrupt=0.1, restored=0.5)).manifest
        update = {"settings": settings, "dataset": "easyvqa", "questions": "requests"}
        (out / "manifest.json").write_text(earlier.model_copy(update=update).model_dump_json())
        (out / "trace.jsonl").write_text("{\n")
    result = mmedit_("trace", "--out", out)
    assert result.code in (1, 2)
    assert said[there] in " ".join(result.err.split())
    assert "Traceback" not in result.err
