"""`mmedit trace` in a terminal."""

from __future__ import annotations

import pytest


def test_the_command_traces_and_prints_the_best_layers(mmedit_, tmp_path):
    result = mmedit_(
        "trace", "--limit", "2", "--draws", "1", "--component", "block",
        "--corruption", "image_noise", "--out", tmp_path / "t",
    )  # fmt: skip
    assert result.code == 0
    assert "embedded on easyvqa, requests: image noise, n = 2" in result.out
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
