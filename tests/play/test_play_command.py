"""`mmedit play`: wrong options are one sentence, before a model is loaded."""

import socket

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (pip install mmedit[play])")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch):
    import mmedit.vlm.loading

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", load)


@pytest.mark.usefixtures("no_model")
def test_a_port_that_is_taken_is_a_sentence(mmedit_):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shown = mmedit_("play", "--port", port)
    assert shown.code == 2
    assert f"port {port} cannot be used" in shown.err
    assert f"--port {port + 1}" in shown.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vlm", "embeded"), "Did you mean 'embedded'?"),
        (("--dataset", "nonsense"), "no dataset named"),
        (("--edit", "no/such/folder"), "no/such/folder"),
        (("--set", "editor.steps=3"), "has no effect on this command"),
        (("--set", "mend.lr=3"), "--set mend.* is for --editor mend"),
        (("--port", "70000"), "--port"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(mmedit_, options, message):
    shown = mmedit_("play", "--port", 0, *options)
    assert shown.code == 2
    assert message in shown.err


def test_without_gradio_the_extra_is_named(mmedit_, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmedit.play.server.find_spec", lambda name: None)
    shown = mmedit_("play")
    assert shown.code == 2
    assert "pip install 'mmedit[play]'" in shown.err
