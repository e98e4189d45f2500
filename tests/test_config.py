"""Settings: names, keys and values are checked, and errors tell the nearest right one."""

import pytest

import mmedit
from mmedit.catalog import describe, names
from mmedit.config import (
    load_cases,
    load_editor,
    load_editors,
    load_vlm,
    load_vlm_file,
    named_vlms,
    read_overrides,
)
from mmedit.config_checks import require_used
from mmedit.config_files import Block, require_names
from mmedit.errors import ConfigError, DataError, MmeditError, UnknownNameError
from mmedit.methods.ft import FTConfig
from mmedit.methods.mend import MENDConfig
from mmedit.storage import config_folder


@pytest.mark.parametrize("vlm", names("vlm"))
@pytest.mark.parametrize("editor", names("editor"))
def test_every_editor_can_be_built_for_every_vlm(editor, vlm):
    built = load_editor(editor, vlm)
    assert built.label
    assert built.config.model_dump()


def test_every_vlm_file_is_valid():
    assert set(named_vlms()) == set(names("vlm"))


HERE = ("easyvqa", "easyvqa-caption", "facts", "facts-sentences")


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
    fine_tuning, last = load_editor("ft", "embedded"), load_editor("ft-l", "embedded")
    assert isinstance(last.config, FTConfig)
    assert last.config.objective == "prompt_last"
    assert last.config.model_copy(update={"objective": "target_new"}) == fine_tuning.config


def test_settings_of_a_vlm_hold_for_that_vlm_alone(vlm, tiny_vlm):
    for other in ("owner/another", tiny_vlm):
        assert load_editor("mend", other).config.model_dump()["rank"] == 1920
    for embedded in ("embedded", vlm, vlm.with_deltas({})):
        assert load_editor("mend", embedded).config.model_dump()["rank"] == 256


def test_a_vlm_keeps_the_name_that_it_was_loaded_by(tiny_folder):
    assert load_vlm(tiny_folder).name == str(tiny_folder)
    assert load_vlm("embedded").name == "embedded"


@pytest.mark.parametrize(
    ("vlm", "message"),
    [("embeded", "Did you mean 'embedded'"), ("", "named ''"), (None, "expected a VLM")],
)
def test_an_editor_for_an_unknown_vlm_is_refused(vlm, message):
    with pytest.raises(MmeditError, match=message):
        load_editor("mend", vlm)


def test_settings_are_keyword_arguments():
    config = load_editor("mend", "embedded", lr=1e-5, training={"steps": 7}).config
    assert isinstance(config, MENDConfig)
    assert (config.lr, config.training.steps, config.training.batch_size) == (1e-5, 7, 16)
    with pytest.raises(ConfigError, match=r"unknown key 'stepps'. Did you mean 'steps'"):
        load_editor("ft", "embedded", stepps=3)


def test_the_part_that_a_user_edits_comes_before_the_sites_of_the_yaml(vlm):
    written = load_editor("ft", vlm)
    assert isinstance(written.config, FTConfig)
    assert written.config.sites
    chosen = load_editor("ft", vlm, where="vision")
    assert isinstance(chosen.config, FTConfig)
    assert chosen.config.sites_of(vlm) == vlm.sites("vision")
    named = load_editor("ft", vlm, sites=written.config.sites[:1])
    assert isinstance(named.config, FTConfig)
    assert named.config.sites == written.config.sites[:1]


def test_an_override_comes_last_and_reaches_nested_keys():
    written = ["editor.lr=1", "mend.lr=1e-5", "editor.training.steps=7", "dataset.task=vqa"]
    overrides = read_overrides(written)
    assert overrides.written == tuple(written)
    config = load_editors(["mend"], "embedded", overrides)["MEND"].config
    assert isinstance(config, MENDConfig)
    assert config.lr == 1e-5
    assert config.training.steps == 7
    assert config.training.batch_size == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["editor.stepps=3"], "unknown key 'stepps'. Did you mean 'steps'"),
        (["editor.steps=abc"], "steps: Input should be a valid integer.*found 'abc'"),
        (["editor.steps=0"], "steps: .*greater than or equal to 1"),
        (["edit.steps=3"], "no part of the configuration named 'edit'. Did you mean 'editor'"),
        (["editor.steps"], "is not of the form part.key=value, for example editor.lr=1e-5"),
        (["editor=3"], "is not of the form part.key=value"),
        (["editor..lr=3"], "is not of the form part.key=value"),
        (["editor.lr=inf"], "lr: Input should be a finite number"),
        (["editor.lr=nan"], "lr: Input should be a finite number"),
        (["editor.lr=1e400"], "lr: Input should be a finite number"),
        (
            ["speech.fluency_tokens=9"],
            r"speech.\* is now called generation.\*: write --set generation.fluency_tokens=9",
        ),
        (["editor.lr=[1"], "not valid YAML"),
    ],
)
def test_a_wrong_override_is_explained(overrides, message):
    with pytest.raises(MmeditError, match=message):
        load_editors(["ft"], "embedded", read_overrides(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mend.lr=5"], r"--set mend.\* is for --editor mend; here the editors are ft"),
        (["ft-l.steps=1", "ft.steps=1"], r"--set ft-l.\* is for --editor ft-l"),
        (["batch.k=5"], r"--set batch.\* is for --mode batch; here the mode is independent"),
    ],
)
def test_a_setting_that_nothing_uses_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        require_used(read_overrides(overrides), ["ft"], ["independent"])


def test_settings_that_are_used_are_not_refused():
    written = ["editor.steps=1", "ft.steps=1", "vlm.dtype=float32", "dataset.task=vqa"]
    require_used(read_overrides(written), ["ft"], ["independent"])


def test_later_overrides_come_after_earlier_ones():
    first = read_overrides(["mend.training.steps=1", "mend.lr=1"])
    both = first | read_overrides(["mend.training.steps=2", "batch.k=3"])
    assert both.of("mend") == {"training": {"steps": 2}, "lr": 1}
    assert both.of("batch") == {"k": 3}
    assert len(both.written) == 4


@pytest.mark.parametrize("split", ["validating", "tset", None])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(UnknownNameError, match="split named"):
        load_cases("easyvqa", split, limit=1)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ConfigError, match="limit is -1"):
        load_cases("easyvqa", "test", limit=-1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"vlm": "models/gone"},
            "the folder models/gone does not exist; expected a transformers model",
        ),
        ({"vlm": "./gone"}, "the folder ./gone does not exist"),
        ({"editors": ("models/gone",)}, "expected the folder of a fitted editor"),
        ({"editors": ("",)}, "named ''"),
        ({"dataset": "mine.json"}, "--dataset json --set dataset.test=mine.json"),
        ({"mode": "sequentiel"}, "Did you mean 'sequential'"),
    ],
)
def test_a_wrong_name_in_a_block_is_found_at_once(tmp_path, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(MmeditError, match=message):
        require_names(Block.model_validate({"editors": ("ft",)} | changed))


def test_the_package_offers_its_names_to_completion():
    assert {"load_vlm", "load_editor", "evaluate", "run_suite", "__version__"} <= set(dir(mmedit))
    assert all(getattr(mmedit, name) is not None for name in dir(mmedit))
    with pytest.raises(AttributeError, match="has no attribute 'load_vml'"):
        mmedit.load_vml  # noqa: B018


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: load_editor("mned", "embedded"), "named 'mned'. Did you mean 'mend'"),
        (lambda: load_vlm_file("embeded"), "named 'embeded'. Did you mean 'embedded'"),
        (lambda: load_cases("easyvq", "test"), "no dataset named 'easyvq'. Did you mean 'easyvqa'"),
    ],
)
def test_a_wrong_name_is_explained(load, message):
    with pytest.raises(UnknownNameError, match=message):
        load()


@pytest.mark.parametrize("settings", [{"task": "foo"}, {"tusk": "vqa"}])
def test_a_wrong_dataset_setting_is_explained(settings):
    with pytest.raises(MmeditError, match=r"dataset easyvqa|no task"):
        load_cases("easyvqa", "test", limit=1, **settings)


def test_two_editors_never_share_a_row():
    with pytest.raises(ConfigError, match="two editors are called 'FT-M'"):
        load_editors(["ft", "ft"], "embedded")
