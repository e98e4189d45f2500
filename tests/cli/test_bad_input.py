"""Whatever is typed: one short message, exit code 2, and no model was loaded."""

import pytest

import mmedit.vlm.loading

LONG = "a" * 5000
BENCH = ("bench", "--editor", "ft", "--limit", "2", "--out", "o")
FIT = ("fit", "--editor", "mend", "--limit", "4", "--out", "o")
EDIT = ("edit", "--prompt", "what?", "--target", "red")


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, tmp_path):
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", load)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LONG,), "No such command"),
        (("help", LONG), "No such command"),
        (("ls", LONG), "no list named"),
        (("ls", f"--{LONG}"), "No such option"),
        (("bench", LONG), "no table or file of a table named"),
        (("bench", "--limit", LONG), "Invalid value for '--limit'"),
        (("bench", "--editor", LONG), "no editor"),
        (("show", "editor", LONG), "no editor"),
        ((*BENCH, "--vlm", LONG), "no VLM"),
        ((*BENCH, "--dataset", LONG), "no dataset named"),
        ((*BENCH, "--mode", LONG), "no mode named"),
        ((*BENCH, "--set", LONG), "is not of the form part.key=value"),
        ((*BENCH, "--set", f"{LONG}.a=1"), "no part of the configuration named"),
        ((*BENCH, "--set", f"editor.steps={LONG}"), "steps: Input should be a valid integer"),
        ((*BENCH[:-1], LONG), "cannot be the name of a folder: File name too long"),
        ((*FIT[:-1], "a" * 300), "cannot be the name of a folder: File name too long"),
        (("report", LONG), "cannot be the name of a folder: File name too long"),
        (("demo", "--out", LONG), "cannot be the name of a folder: File name too long"),
    ],
)
def test_long_texts_are_shortened(mmedit_, arguments, message):
    shown = mmedit_(*arguments)
    assert shown.code == 2
    assert message in shown.err
    assert len(shown.err) < 700


@pytest.mark.parametrize(
    "arguments",
    [
        ("\udcff",),
        (*BENCH[:-1], "a\udcff"),
        (*BENCH, "--vlm", "a/\udcff"),
        (*BENCH, "--set", "editor.objective=\udcff"),
        ("report", "a\0b"),
        (*EDIT, "--target", "\ud83d"),
        (*EDIT, "--prompt", "\ud83d"),
    ],
)
def test_an_argument_that_is_not_text_is_refused(mmedit_, arguments):
    shown = mmedit_(*arguments)
    assert shown.code == 2
    assert "it is not text in UTF-8" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*BENCH, "--batch-size", "99999999999"), "less than or equal to 100000"),
        ((*BENCH, "--seed", str(2**63)), "less than or equal to 9223372036854775807"),
        ((*FIT, "--seed", str(2**63)), "less than or equal to 9223372036854775807"),
        ((*BENCH, "--set", "editor.steps=1000000000000"), "expected a number up to 1,000,000,000"),
        ((*BENCH, "--set", "vlm.batch_size=3", "--batch-size", "4"), "leave out one"),
        ((*FIT, "--set", "vlm.batch_size=3"), "--set vlm.batch_size has no effect on this command"),
        ((*FIT, "--set", "generation.fluency_tokens=3"), "--set generation.* has no effect"),
        ((*FIT, "--set", "mend.training.patience=3"), "mmedit fit --validation N"),
        ((*EDIT, "--set", "generation.clip_score=a/b"), "generation.clip_score has no effect"),
        ((*BENCH, "--vlm", "models/gone"), "there is no folder models/gone here"),
    ],
)
def test_a_setting_without_effect_and_an_absurd_size_are_refused(
    mmedit_, monkeypatch, arguments, message
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shown = mmedit_(*arguments)
    assert shown.code == 2
    assert message in shown.err
