"""Settings: names, keys and values are checked, and errors tell the nearest right one."""

import pytest

from mmedit.config import (
    describe,
    load_cases,
    load_editor,
    load_editors,
    load_vlm_file,
    named_vlms,
    names,
)
from mmedit.errors import ConfigError, DataError, MmeditError, UnknownNameError
from mmedit.methods.ft import FTConfig
from mmedit.methods.mend import MENDConfig
from mmedit.storage import config_folder


@pytest.mark.parametrize("vlm", names("vlm"))
@pytest.mark.parametrize("editor", names("editor"))
def test_every_editor_can_be_built_for_every_vlm(editor, vlm):
    label, built = load_editor(editor, vlm)
    assert label
    assert built.config.model_dump()


def test_every_vlm_file_is_valid():
    assert set(named_vlms()) == set(names("vlm"))


HERE = ("easyvqa", "easyvqa-caption")


@pytest.mark.parametrize("name", HERE)
def test_every_dataset_that_needs_no_files_loads_cases(name):
    assert len(load_cases(name, "test", limit=2)) == 2


@pytest.mark.parametrize("name", sorted(set(names("dataset")) - set(HERE)))
def test_every_other_dataset_says_what_to_set(name):
    with pytest.raises(DataError, match=r"--set dataset\.(root|test)="):
        load_cases(name, "test", limit=2)


@pytest.mark.parametrize("kind", ["vlm", "editor", "dataset", "table"])
def test_every_file_says_what_it_is(kind):
    assert (config_folder() / kind).is_dir()
    assert all(text.endswith(".") or ")" in text for _, text in describe(kind))


def test_an_editor_extends_another_and_keeps_what_it_does_not_change():
    fine_tuning, last = load_editor("ft", "embedded")[1], load_editor("ft-l", "embedded")[1]
    assert isinstance(last.config, FTConfig)
    assert last.config.objective == "prompt_last"
    assert last.config.model_copy(update={"objective": "target_new"}) == fine_tuning.config


def test_settings_of_a_vlm_hold_for_that_vlm_alone():
    assert load_editor("mend", "another")[1].config.rank == 1920
    assert load_editor("mend", "embedded")[1].config.rank == 256


def test_an_override_comes_last_and_reaches_nested_keys():
    wanted = ["editor.lr=1e-5", "editor.training.steps=7", "dataset.task=vqa"]
    config = load_editor("mend", "embedded", wanted)[1].config
    assert isinstance(config, MENDConfig)
    assert config.lr == 1e-5
    assert config.training.steps == 7
    assert config.training.batch_size == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["editor.stepps=3"], "unknown key 'stepps'. Did you mean 'steps'"),
        (["editor.steps=abc"], "steps: Input should be a valid integer.*found 'abc'"),
        (["editor.steps=0"], "steps: .*greater than or equal to 1"),
        (["edit.steps=3"], "no part of the configuration named 'edit'. Did you mean 'editor'"),
        (["editor.steps"], "part.key=value was wanted"),
        (["editor.lr=[1"], "not valid YAML"),
    ],
)
def test_a_wrong_override_is_explained(overrides, message):
    with pytest.raises(MmeditError, match=message):
        load_editor("ft", "embedded", overrides)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: load_editor("mned", "embedded"), "no editor named 'mned'. Did you mean 'mend'"),
        (lambda: load_vlm_file("embeded"), "named 'embeded'. Did you mean 'embedded'"),
        (lambda: load_cases("easyvq", "test"), "no dataset named 'easyvq'. Did you mean 'easyvqa'"),
    ],
)
def test_a_wrong_name_is_explained(load, message):
    with pytest.raises(UnknownNameError, match=message):
        load()


@pytest.mark.parametrize("override", ["dataset.task=foo", "dataset.tusk=vqa"])
def test_a_wrong_dataset_setting_is_explained(override):
    with pytest.raises(MmeditError, match=r"dataset easyvqa|no task"):
        load_cases("easyvqa", "test", limit=1, overrides=[override])


def test_two_editors_never_share_a_row():
    with pytest.raises(ConfigError, match="two editors are called 'FT-M'"):
        load_editors(["ft", "ft"], "embedded")
