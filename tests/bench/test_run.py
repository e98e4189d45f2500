"""A run in a folder: what it keeps, and that it continues."""

import lzma
from dataclasses import replace
from pathlib import Path

import pytest
from plans import make_plan

from mmedit.bench.generation import GenerationSettings
from mmedit.bench.modes import Batch, Sequential
from mmedit.bench.plan import Plan
from mmedit.bench.run import run
from mmedit.cases import HASH_VERSION, EditCase, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.base import Editor
from mmedit.editors.fitting import Fitting
from mmedit.errors import EditorError, RunError, SiteError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.pages import save_images
from mmedit.progress import Progress, silent
from mmedit.records.schema import Record
from mmedit.records.store import (
    MANIFEST,
    PACKED,
    RECORDS,
    read_manifest,
    read_records,
    write_manifest,
)

SITE = "language_model.model.decoder.layers.3.fc1"


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=6))


def plan() -> Plan:
    editors: dict[str, Editor] = {
        "FT": FT(FTConfig(sites=(SITE,), lr=2e-3, steps=3)),
        "IKE": IKE(IKEConfig(k=1)),
    }
    return make_plan(vlm_name="embedded", dataset="easyvqa", limit=6, editors=editors)


def training(progress: Progress) -> list[EditCase]:
    progress("reading cases", 10, 10, "")
    return list(easyvqa.EasyVQA().load("train", limit=10))


def measured(records: list[Record]) -> list[dict]:
    return [r.model_dump(exclude={"seconds", "peak_memory_bytes"}) for r in records]


def test_a_run_keeps_manifest_records_and_fitted_editors(vlm, cases, tmp_path):
    records, seconds = run(plan(), tmp_path, vlm, cases, training, progress=silent)
    assert [r.editor for r in records] == ["base"] * 6 + ["FT"] * 6 + ["IKE"] * 6
    assert read_records(tmp_path) == records
    assert read_manifest(tmp_path).training_seconds == seconds
    assert seconds.keys() == {"IKE"}
    assert (tmp_path / "editors" / "ike" / "editor.safetensors").exists()


@pytest.fixture(scope="module")
def whole(vlm, cases, tmp_path_factory) -> list[Record]:
    """The records of a run that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return run(plan(), folder, vlm, cases, training, progress=silent)[0]


@pytest.mark.parametrize("break_after", [1, 4, 7])
def test_an_interrupted_run_ends_with_the_same_records(vlm, cases, whole, tmp_path, break_after):
    told = 0

    def interrupt(what: str, done: int, total: int, figures: str) -> None:
        nonlocal told
        told += what.startswith("measuring") and done > 0
        if told == break_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path / "broken", vlm, cases, training, progress=interrupt)
    assert len(read_records(tmp_path / "broken")) == 2 * break_after  # batches of two

    def no_training(progress: Progress) -> list[EditCase]:
        raise AssertionError("the editor was fitted before")

    continued, _ = run(plan(), tmp_path / "broken", vlm, cases, no_training, progress=silent)
    assert measured(continued) == measured(whole)


OTHER_RUNS = {
    "seed=0, and this command has seed=1. Use the same value": {"seed": 1},
    "max_new_tokens=0, and this command has max_new_tokens=5": {"max_new_tokens": 5},
    "limit=6, and this command has limit=5. A limit can only grow": {"limit": 5},
    "limit=6, and this command has limit=9. To let the run grow, name all": {
        "limit": 9,
        "editors": {},
    },
    "FT.steps=3, and this command has FT.steps=4": {
        "editors": {"FT": FT(FTConfig(sites=(SITE,), lr=2e-3, steps=4))}
    },
    r"dataset.task=\(not set\), and this command has dataset.task=caption": {
        "overrides": ("dataset.task=caption",)
    },
    "mode.kind=independent, and this command has mode.kind=batch": {"mode": Batch(k=2)},
}


@pytest.mark.parametrize("said", OTHER_RUNS)
def test_another_run_in_the_same_folder_is_refused_in_one_line(vlm, cases, tmp_path, said):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    with pytest.raises(RunError, match=f"holds a run with {said}") as refused:
        run(replace(plan(), **OTHER_RUNS[said]), tmp_path, vlm, cases, training, progress=silent)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


# A run that grows


def ids(records: list[Record], editor: str) -> list[str]:
    return [record.case_id for record in records if record.editor == editor]


def test_a_run_grows_by_editors_in_any_order_and_keeps_what_it_has(vlm, cases, tmp_path):
    both = plan().editors
    first, _ = run(
        replace(plan(), editors={"FT": both["FT"]}), tmp_path, vlm, cases, training, progress=silent
    )
    turned = replace(plan(), editors={"IKE": both["IKE"], "FT": both["FT"]})
    records, _ = run(turned, tmp_path, vlm, cases, training, progress=silent)
    assert [r.editor for r in records] == ["base"] * 6 + ["IKE"] * 6 + ["FT"] * 6
    assert read_records(tmp_path)[:12] == first
    other = replace(plan(), editors={})
    again, _ = run(other, tmp_path, vlm, cases, training, progress=silent)
    assert sorted(again, key=lambda r: r.key) == sorted(records, key=lambda r: r.key)
    manifest = read_manifest(tmp_path)
    assert set(manifest.editors) == set(manifest.config) == {"FT", "IKE"}
    assert [part.editors for part in manifest.parts] == [("FT",), ("IKE", "FT"), ()]
    assert [part.first_record for part in manifest.parts] == [0, 12, 18]


def test_a_run_grows_by_cases_and_may_change_its_batch_size(vlm, cases, tmp_path):
    small = replace(plan(), limit=3)
    first, _ = run(small, tmp_path, vlm, cases[:3], training, progress=silent)
    larger = replace(plan(), limit=6, batch_size=4)
    grown, _ = run(larger, tmp_path, vlm, cases, training, progress=silent)
    assert read_records(tmp_path)[: len(first)] == first
    for editor in ("base", "FT", "IKE"):
        assert ids(grown, editor) == [case.id for case in cases]
    parts = read_manifest(tmp_path).parts
    assert [(part.batch_size, part.cases) for part in parts] == [(2, 3), (4, 6)]
    assert read_manifest(tmp_path).limit == 6
    with pytest.raises(RunError, match="A limit can only grow"):
        run(small, tmp_path, vlm, cases[:3], training, progress=silent)


def test_a_run_that_grew_has_the_results_of_one_that_had_all_from_the_start(vlm, cases, tmp_path):
    """To the last digit, as its batches of two are those of the whole run."""
    whole, _ = run(plan(), tmp_path / "whole", vlm, cases, training, progress=silent)
    folder = tmp_path / "grown"
    run(replace(plan(), limit=4), folder, vlm, cases[:4], training, progress=silent)
    grown, _ = run(plan(), folder, vlm, cases, training, progress=silent)
    assert measured(grown) == measured(whole)


def test_the_same_command_adds_no_part(vlm, cases, tmp_path):
    for _ in range(2):
        run(plan(), tmp_path, vlm, cases[:2], training, progress=silent)
    [part] = read_manifest(tmp_path).parts
    assert (part.first_record, part.batch_size, part.cases) == (0, 2, 2)


def test_a_run_does_not_grow_by_other_cases(vlm, cases, tmp_path):
    run(replace(plan(), limit=3), tmp_path, vlm, cases[:3], training, progress=silent)
    with pytest.raises(RunError, match="a run of another dataset with the same name"):
        run(plan(), tmp_path, vlm, cases[::-1], training, progress=silent)


@pytest.mark.parametrize("mode", [Batch(k=2), Sequential()])
def test_edits_that_depend_on_each_other_do_not_grow(vlm, cases, tmp_path, mode):
    small = replace(plan(), limit=3, mode=mode, editors={})
    run(small, tmp_path, vlm, cases[:3], training, progress=silent)
    with pytest.raises(RunError, match=f"In --mode {mode.kind} each record depends on the other"):
        run(replace(small, limit=6), tmp_path, vlm, cases, training, progress=silent)
    run(replace(small, batch_size=3), tmp_path, vlm, cases[:3], training, progress=silent)


# Checks before anything is measured


def test_an_editor_that_does_not_fit_is_refused_before_anything_is_measured(vlm, cases, tmp_path):
    wrong = replace(plan(), editors={"FT": FT(FTConfig(sites=("language_model.nothing",)))})
    with pytest.raises(SiteError, match="nothing"):
        run(wrong, tmp_path / "site", vlm, cases, training, progress=silent)
    fitted = IKE(IKEConfig(k=1)).fit(vlm, Fitting(training(silent)))
    assert fitted.origin is not None
    other = replace(fitted.origin, vlm=fitted.origin.vlm._replace(weights="0" * 32))
    elsewhere = fitted.with_learnt(fitted.learnt, other)
    with pytest.raises(EditorError, match="with other weights"):
        run(
            replace(plan(), editors={"IKE": elsewhere}),
            tmp_path / "weights",
            vlm,
            cases,
            training,
            progress=silent,
        )
    assert not list(tmp_path.iterdir())


# Manifests of first versions

OLD_MANIFEST = """
{"command": "mmedit bench", "versions": {"torch": "2.13"}, "vlm": "embedded", "dataset": "easyvqa",
 "limit": 6, "seed": 0, "editors": ["FT"], "training_seconds": {}, "config": {
  "run": {"batch_size": 2, "max_new_tokens": 4, "fluency_tokens": 9, "overrides": [],
          "mode": {"kind": "sequential", "ability_every": 0}, "left_out": {"torn": 3}},
  "FT": {"where": "language", "sites": ["SITE"], "lr": 2e-3, "steps": 3}}}
""".replace("SITE", SITE)


def test_a_run_of_a_first_version_continues(vlm, cases, tmp_path):
    (tmp_path / MANIFEST).write_text(OLD_MANIFEST)
    (tmp_path / "editors" / "mend" / "checkpoints").mkdir(parents=True)  # something was kept
    manifest = read_manifest(tmp_path)
    assert manifest.run.generation == {"fluency_tokens": 9}
    assert manifest.run.left_out == {"torn": 3}
    assert set(manifest.config) == {"FT"}
    same = replace(
        plan(),
        editors={"FT": plan().editors["FT"]},
        max_new_tokens=4,
        generation=GenerationSettings(fluency_tokens=9),
        mode=Sequential(ability_every=0),
    )
    run(same, tmp_path, vlm, cases[:1], training, progress=silent)
    assert len(read_manifest(tmp_path).parts) == 2
    with pytest.raises(RunError, match=r"generation.fluency_tokens=9, .*=8"):
        run(
            replace(same, generation=GenerationSettings(fluency_tokens=8)),
            tmp_path,
            vlm,
            cases[:1],
            training,
            progress=silent,
        )


def test_records_without_a_manifest_are_not_overwritten(vlm, cases, tmp_path: Path):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    (tmp_path / MANIFEST).unlink()
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(RunError, match="records without a manifest"):
        run(plan(), tmp_path, vlm, cases, training, progress=silent)
    assert (tmp_path / RECORDS).read_bytes() == before


def test_images_made_in_memory_get_a_file_under_their_name_in_the_records(vlm, cases, tmp_path):
    [record, *_] = run(plan(), tmp_path / "run", vlm, cases[:1], training, progress=silent)[0]
    files = save_images(cases[:1], tmp_path / "images")
    for probe in (Probe.RELIABILITY, Probe.IMAGE_GENERALITY, Probe.IMAGE_LOCALITY):
        name = record.probes[probe][0].image
        assert name is not None
        assert files[name].is_file()


def test_the_manifest_says_which_source_weights_cases_and_editors_were_measured(
    vlm, cases, tmp_path
):
    run(plan(), tmp_path, vlm, cases, training, progress=silent)
    manifest = read_manifest(tmp_path)
    assert manifest.hashes.keys() == {"vlm", "dataset", "IKE"}
    assert manifest.hashes["vlm"] == vlm.identity.hash
    assert manifest.commit is None or len(manifest.commit.rstrip("+")) == 40


@pytest.mark.parametrize("name", ["vlm", "dataset", "IKE"])
def test_a_run_is_not_continued_with_what_only_has_the_same_name(vlm, cases, tmp_path, name):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    manifest = read_manifest(tmp_path)
    changed = {name: manifest.hashes[name][:2] + "0" * 32}
    write_manifest(tmp_path, manifest.model_copy(update={"hashes": manifest.hashes | changed}))
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(RunError, match=f"a run of another {name} with the same name"):
        run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    assert (tmp_path / RECORDS).read_bytes() == before


def test_a_run_whose_hash_left_out_images_and_answers_is_read_and_not_continued(
    vlm, cases, tmp_path
):
    records, _ = run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    manifest = read_manifest(tmp_path)
    earlier = {"dataset": manifest.hashes["dataset"].removeprefix(HASH_VERSION)}
    write_manifest(tmp_path, manifest.model_copy(update={"hashes": manifest.hashes | earlier}))
    with pytest.raises(RunError, match="holds a run of an earlier version of mmedit"):
        run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    assert read_records(tmp_path) == records


def test_a_setting_that_a_later_version_added_is_as_by_default(vlm, cases, tmp_path):
    sequence = replace(plan(), mode=Sequential(ability_every=0), editors={})
    run(sequence, tmp_path, vlm, cases[:2], training, progress=silent)
    manifest = read_manifest(tmp_path)
    described = manifest.run.model_dump(mode="json")
    del described["mode"]["snapshot_every"]
    settings = manifest.run.model_validate(described)
    write_manifest(tmp_path, manifest.model_copy(update={"run": settings}))
    run(sequence, tmp_path, vlm, cases[:2], training, progress=silent)


def test_packed_records_are_not_continued_by_accident(vlm, cases, tmp_path):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    (tmp_path / PACKED).write_bytes(lzma.compress((tmp_path / RECORDS).read_bytes()))
    (tmp_path / RECORDS).unlink()
    with pytest.raises(RunError, match="unpack them: xz -d"):
        run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)


def test_the_manifest_says_which_weights_are_edited(vlm, cases, tmp_path):
    bridge = FT(FTConfig(where="bridge", steps=1))
    editors = {"FT": plan().editors["FT"], "bridge": bridge, "IKE": IKE(IKEConfig(k=0))}
    now = replace(plan(), editors=editors)
    run(now, tmp_path, vlm, cases[:1], training, progress=silent)
    assert read_manifest(tmp_path).sites == {"FT": (SITE,), "bridge": vlm.sites("bridge")}
    other = read_manifest(tmp_path).model_copy(update={"sites": {"bridge": (SITE,)}})
    write_manifest(tmp_path, other)
    with pytest.raises(RunError, match=r"sites\.bridge=.*Use the same value"):
        run(now, tmp_path, vlm, cases[:1], training, progress=silent)


def test_a_run_that_was_refused_before_its_first_record_does_not_refuse_another(
    vlm, cases, tmp_path
):
    def no_training(progress: Progress) -> list[EditCase]:
        raise EditorError("no cases")

    with pytest.raises(EditorError, match="no cases"):
        run(plan(), tmp_path, vlm, cases[:1], no_training, progress=silent)
    assert (tmp_path / MANIFEST).exists()
    another = replace(plan(), editors={"FT": FT(FTConfig(sites=(SITE,), steps=1))}, seed=1)
    run(another, tmp_path, vlm, cases[:1], training, progress=silent)
    assert read_manifest(tmp_path).editors == ("FT",)
