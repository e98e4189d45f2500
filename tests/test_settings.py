"""What is set is what runs: a setting without effect, or of no sane size, is an error."""

from typing import Any

import pytest

import mmedit.config
import mmedit.config_files
import mmedit.hub
import mmedit.suite
from mmedit.bench.modes import READ_MODE, Sequential, left_out_tests
from mmedit.catalog import MAX_BYTES, read_yaml
from mmedit.config import (
    load_editor,
    load_editors,
    load_generation,
    load_mode,
    load_vlm_file,
    read_overrides,
    require_trainable,
)
from mmedit.config_checks import named_as, require_used
from mmedit.config_files import Block, _extended
from mmedit.errors import ConfigError, MmeditError, ModelError, UnknownNameError
from mmedit.hub import require_on_hub
from mmedit.methods.ft import FTConfig
from mmedit.suite import RunOptions, run_suite


@pytest.mark.parametrize(
    ("editor", "settings", "message"),
    [
        ("ike", {"k": 0, "retrieval": "text"}, "retrieval has no effect with k=0"),
        ("serac", {"scope_encoder": "a"}, "scope_encoder has no effect with scope=multimodal"),
        ("serac-text", {"clip": "a/b"}, "clip has no effect with scope=text"),
        (
            "serac",
            {"counterfactual": "a", "counterfactual_width": 8},
            "no effect with a pretrained counterfactual model",
        ),
        ("mend", {"sites": ("a",), "where": "vision"}, "where has no effect beside sites"),
    ],
)
def test_a_setting_that_another_one_turns_off_is_refused(editor, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_editor(editor, "embedded", **settings)


def test_the_settings_of_a_file_may_be_turned_off():
    assert load_editor("serac-text", "blip2-opt-2.7b").config.model_dump()["clip"] is None
    assert load_editor("ike", "embedded", k=0).config.model_dump()["retrieval"] == "both"


def test_an_ability_test_that_is_off_has_no_cases():
    written = ["sequential.ability_every=0", "sequential.ability_cases=9"]
    with pytest.raises(ConfigError, match="ability_cases has no effect with ability_every=0"):
        load_mode("sequential", read_overrides(written))
    kept = load_mode("sequential", read_overrides(written[:1])).model_dump()
    assert READ_MODE.validate_python(kept) == Sequential(ability_every=0)


def test_a_part_that_a_command_does_not_use_is_refused():
    for written in ("generation.fluency_tokens=5", "vlm.batch_size=2"):
        with pytest.raises(ConfigError, match=rf"--set {written[:9]}.* has no effect"):
            require_used(
                read_overrides([written]), ["ft"], without=("generation", "vlm.batch_size")
            )
    require_used(read_overrides(["vlm.dtype=float32"]), ["ft"], without=("vlm.batch_size",))


@pytest.mark.parametrize(
    ("options", "written", "message"),
    [
        ({"batch_size": 4}, ["vlm.batch_size=3"], "--batch-size and --set vlm.batch_size"),
        ({"generate": False}, ["generation.fluency_tokens=0"], "which --no-generate turns off"),
        ({}, ["vlm.convert=x"], "vlm.convert is the command that makes a model folder"),
        ({}, ["mend.training.patience=3"], "patience stops a training by its validation cases"),
        ({}, ["vlm.adapter=lava"], "no adapter named 'lava'. Did you mean 'llava'"),
    ],
)
def test_a_setting_without_effect_on_a_run_is_refused(
    tmp_path, options: dict[str, Any], written, message
):
    block = Block(editors=("mend",), limit=2)
    with pytest.raises(MmeditError, match=message):
        run_suite(
            {"a": block}, tmp_path, options=RunOptions(overrides=read_overrides(written), **options)
        )


def test_patience_is_used_if_there_are_validation_cases():
    editors = load_editors(["mend"], "embedded", read_overrides(["mend.training.patience=3"]))
    require_trainable(editors["MEND"], "easyvqa", read_overrides([]), validation=9)


def test_a_file_that_moves_an_edit_leaves_the_sites_of_the_file_it_extends():
    parent = {
        "settings": {"sites": ["a"], "lr": 1},
        "per_vlm": {"x": {"sites": ["b"], "lr": 2}, "y": {"sites": ["c"]}},
    }
    child = {"settings": {"where": "vision"}, "per_vlm": {"y": {"sites": ["d"]}}}
    assert _extended(parent, child) == {
        "settings": {"lr": 1, "where": "vision"},
        "per_vlm": {"x": {"lr": 2}, "y": {"sites": ["d"]}},
    }


# Sizes


@pytest.mark.parametrize(
    ("editor", "settings", "message"),
    [
        ("ft", {"steps": True}, "steps: expected a number, found True"),
        ("ft", {"lr": False}, "lr: expected a number, found False"),
        ("ft", {"steps": 10**12}, "steps: expected a number up to 1,000,000,000"),
        ("mend", {"training": {"steps": 10**12}}, "training: steps: expected a number up to"),
        ("ft", {"steps": "x" * 5000}, r"found 'x+\.\.\.x+'\)$"),
        ("ft", {"x" * 5000: 1}, r"unknown key 'x+\.\.\.x+'"),
    ],
)
def test_a_number_that_is_none_or_of_no_sane_size_is_refused(editor, settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_editor(editor, "embedded", **settings)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "written",
    [
        "sequential.checkpoints=[0]",
        "sequential.checkpoints=[-1]",
        "sequential.gaps=[true]",
        "sequential.orders=1000000",
    ],
)
def test_a_sequence_has_sane_sizes(written):
    with pytest.raises(ConfigError, match=r"mode sequential: (checkpoints|gaps|orders)"):
        load_mode("sequential", read_overrides([written]))


def test_tests_that_a_sequence_is_too_short_for_are_told():
    mode = Sequential(checkpoints=(1, 99), gaps=(1, 10))
    assert left_out_tests(mode, 10) == [
        "sequential.checkpoints=99 needs at least 99 edits and there are 10: it is left out.",
        "sequential.gaps=10 needs at least 11 edits and there are 10: it is left out.",
    ]
    assert left_out_tests(mode, 99) == []


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0}, {"limit": "3"}, {"limit": True}, {"batch_size": 0}, {"batch_size": 1.5},
        {"batch_size": 10**9}, {"seed": -1}, {"seed": 2**63},
    ],
)  # fmt: skip
def test_the_options_of_a_suite_are_whole_numbers(options):
    [name] = options
    with pytest.raises(ConfigError, match=f"{name} is .*; expected a whole number from [01]"):
        RunOptions(**options)


# Files and texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [" + b"*a," * 99 + b"]\nc: [" + b"*b," * 99 + b"]",
         "holds more than 10,000 values"),
        (b"a: &a [*a]", "holds more than 10,000 values"),
        (b'a: "\\ud83d"', "holds a text that contains half of a character"),
        (b"a: 2020-13-45", "is not valid YAML: month must be in 1..12"),
        (b"a: " + b"1" * 5000, "is not valid YAML"),
        (b"#" * (MAX_BYTES + 1), "is larger than 1,000,000 bytes"),
        (b"[" * 5000, "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_file_of_settings_is_named(tmp_path, content, message):
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"x\.yaml {message}") as raised:
        read_yaml(file)
    assert "\n" not in str(raised.value)


def test_a_file_of_a_windows_editor_is_read(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1}


@pytest.mark.parametrize(
    "written", ["editor.x=2020-13-45", "editor.x=" + "[" * 3000, "editor" + ".a" * 3000 + "=1"]
)
def test_a_value_that_cannot_be_read_is_one_short_line(written):
    with pytest.raises(ConfigError, match="--set 'editor") as raised:
        read_overrides([written])
    assert len(str(raised.value)) < 300


# VLMs that have settings by another name


def test_a_vlm_is_known_by_its_hub_id_and_its_folder(vlm_folder):
    assert named_as("embedded") == named_as(str(vlm_folder)) == "embedded"
    assert named_as("Salesforce/blip2-opt-2.7b") == "blip2-opt-2.7b"
    assert named_as("owner/another") is None


def test_a_vlm_given_by_its_folder_has_the_settings_of_its_name(vlm_folder, caplog):
    named = load_editor("mend", "embedded").config
    assert load_editor("mend", vlm_folder).config == named
    assert load_vlm_file(str(vlm_folder)) == load_vlm_file("embedded")
    assert not caplog.records


def test_a_vlm_without_settings_of_its_own_is_told(tiny_vlm, caplog):
    load_editor("mend", "owner/another")
    assert "No settings of mend are known for 'owner/another'" in caplog.text
    assert "mmedit show editor mend --vlm owner/another" in caplog.text


@pytest.fixture
def vlm_folder():
    from mmedit.vlm.loading import resolve_vlm

    return resolve_vlm("embedded")


def test_a_name_that_the_hub_does_not_have_is_refused_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no folder models/gone here.* HF_HUB_OFFLINE"):
        load_vlm_file("models/gone")
    with pytest.raises(ModelError, match="no fitted editor of that name"):
        load_editor("me/gone", "embedded")


@pytest.mark.parametrize(
    ("status", "message"), [(404, r"the hub refuses it too \(HTTP 404\)"), (None, "be reached")]
)
def test_the_hub_is_asked_once(monkeypatch, status, message):
    import huggingface_hub.utils
    from huggingface_hub import constants

    class Session:
        def head(self, *_: object, **__: object) -> object:
            if status is None:
                raise OSError("no route")
            return type("Answer", (), {"status_code": status})

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    with pytest.raises(ModelError, match=message):
        require_on_hub("models/gone", "config.json", "model")
    assert mmedit.hub.SECONDS_TO_ANSWER <= 10


# From Python, whose callers need not check types

untyped: Any = mmedit.config
suite: Any = mmedit.suite
UntypedBlock: Any = mmedit.config_files.Block


def test_a_text_is_taken_where_a_list_of_one_is_meant():
    assert untyped.read_overrides("editor.steps=2").of("editor") == {"steps": 2}
    assert UntypedBlock(editors="ft", settings="ft.steps=1") == UntypedBlock(
        editors=("ft",), settings=("ft.steps=1",)
    )
    assert list(untyped.load_editors("ft", "embedded")) == ["FT-M"]
    assert suite.RunOptions(overrides="ft.steps=2").overrides.of("ft") == {"steps": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: untyped.load_vlm("embedded", dtype="bf16"), "'bf16'. Did you mean 'bfloat16'"),
        (lambda: untyped.load_vlm("embedded", dtype=dict), "the dtype is <class 'dict'>"),
        (
            lambda: untyped.load_vlm("embedded", adapter=dict),
            "the adapter is <class 'dict'>; expected a",
        ),
        (lambda: untyped.load_vlm("embedded", adapter="lava"), "Did you mean 'llava'"),
        (lambda: untyped.load_vlm(None), "the VLM is None; expected a name"),
        (lambda: untyped.load_editor(None, "embedded"), "the editor is None; expected a name"),
        (lambda: untyped.load_editor("ft", {}), "the editor's vlm is {}; expected a VLM"),
        (lambda: untyped.load_cases(None, "test"), "the dataset is None; expected a name"),
        (
            lambda: untyped.load_cases("easyvqa", "test", limit="3"),
            "limit is '3'; expected a whole number",
        ),
        (lambda: untyped.load_cases("easyvqa", "test", limit=True), "limit is True; expected"),
        (
            lambda: untyped.load_cases("easyvqa", "test", limit=1, seed=2**63),
            "seed is 9223372036854775808",
        ),
        (lambda: untyped.load_cases("easyvqa", "test", limit=1, seed="a"), "seed is 'a'; expected"),
        (lambda: untyped.load_mode("sequentiel"), "Did you mean 'sequential'"),
        (lambda: UntypedBlock(vlm=5), "Block: vlm: Input should be a valid string"),
        (lambda: FTConfig(steps=0), "FTConfig: steps: Input should be greater than or equal to 1"),
        (
            lambda: suite.run_suite(UntypedBlock(editors="ft"), "x"),
            "expected at least one by its name",
        ),
        (lambda: suite.run_suite({}, "x"), "expected at least one by its name"),
        (
            lambda: suite.run_suite({"a/b": UntypedBlock(editors="ft")}, "x"),
            "the block name 'a/b' cannot be",
        ),
        (lambda: suite.run_suite({"a": {"editor": "ft"}}, "x"), "Did you mean 'editors'"),
        (
            lambda: suite.run_suite({"a": UntypedBlock(editors="ft")}, "x\0y"),
            "cannot be the name of a folder",
        ),
        (
            lambda: suite.run_suite({"a": UntypedBlock(editors="ft")}, ""),
            "the name of a folder is empty",
        ),
        (
            lambda: suite.run_suite({"a": UntypedBlock(editors="ft")}, "x" * 300),
            "File name too long",
        ),
    ],
)
def test_a_wrong_argument_is_one_error_of_mmedit(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MmeditError) as raised:
        call()
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_generation_settings_are_checked():
    with pytest.raises(ConfigError, match="generation: unknown key 'fluency'"):
        load_generation(read_overrides(["generation.fluency=1"]))


def test_an_unknown_name_is_told_in_short():
    with pytest.raises(UnknownNameError) as raised:
        untyped.load_editor("m" * 5000, "embedded")
    told, _, known = str(raised.value).partition(" There are: ")
    assert len(told) < 160
    assert "mend" in known  # the list of names is as long as there are editors
