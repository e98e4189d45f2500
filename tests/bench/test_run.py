"""A run in a folder: what it keeps, and that it continues."""

import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from mmedit.bench.modes import Sequential
from mmedit.bench.plan import Plan
from mmedit.bench.run import run
from mmedit.cases import EditCase, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.base import Editor
from mmedit.errors import RunError
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


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return easyvqa.load("test", limit=6)


def plan() -> Plan:
    sites = ("language_model.model.decoder.layers.3.fc1",)
    editors: dict[str, Editor] = {
        "FT": FT(FTConfig(sites=sites, lr=2e-3, steps=3)),
        "IKE": IKE(IKEConfig(k=1)),
    }
    return Plan(
        vlm_name="embedded",
        dataset="easyvqa",
        limit=6,
        seed=0,
        editors=editors,
        batch_size=2,
        max_new_tokens=0,
        command="mmedit bench",
    )


def training(progress: Progress) -> list[EditCase]:
    progress("reading cases", 10, 10, "")
    return easyvqa.load("train", limit=10)


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


@pytest.mark.parametrize("break_after", [1, 7, 15])
def test_an_interrupted_run_ends_with_the_same_records(vlm, cases, whole, tmp_path, break_after):
    told = 0

    def interrupt(what: str, done: int, total: int, figures: str) -> None:
        nonlocal told
        told += what.startswith("measuring")
        if told == break_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path / "broken", vlm, cases, training, progress=interrupt)
    assert len(read_records(tmp_path / "broken")) == break_after

    def no_training(progress: Progress) -> list[EditCase]:
        raise AssertionError("the editor was fitted before")

    continued, _ = run(plan(), tmp_path / "broken", vlm, cases, no_training, progress=silent)
    assert measured(continued) == measured(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"limit": 5}, "limit"),
        ({"editors": {}}, "editors"),
        ({"batch_size": 3}, "config"),
        ({"overrides": ("dataset.task=caption",)}, "config"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(vlm, cases, tmp_path, change, named):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    with pytest.raises(RunError, match=f"holds another run: its {named} is"):
        run(replace(plan(), **change), tmp_path, vlm, cases, training, progress=silent)


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
    assert manifest.hashes["vlm"] == vlm.identity.weights
    assert manifest.commit is None or len(manifest.commit.rstrip("+")) == 40


@pytest.mark.parametrize("name", ["vlm", "dataset", "IKE"])
def test_a_run_is_not_continued_with_what_only_has_the_same_name(vlm, cases, tmp_path, name):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    manifest = read_manifest(tmp_path)
    other = manifest.model_copy(update={"hashes": manifest.hashes | {name: "0" * 32}})
    write_manifest(tmp_path, other)
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(RunError, match=f"a run of another {name}, though of the same name"):
        run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    assert (tmp_path / RECORDS).read_bytes() == before


def test_a_setting_that_a_later_version_added_is_as_by_default(vlm, cases, tmp_path):
    sequence = replace(plan(), mode=Sequential(ability_every=0), editors={})
    run(sequence, tmp_path, vlm, cases[:2], training, progress=silent)
    manifest = read_manifest(tmp_path)
    described = manifest.model_dump(mode="json")["config"]
    del described["run"]["mode"]["snapshot_every"]
    write_manifest(tmp_path, manifest.model_copy(update={"config": described}))
    run(sequence, tmp_path, vlm, cases[:2], training, progress=silent)


def test_packed_records_are_not_continued_by_accident(vlm, cases, tmp_path):
    run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
    (tmp_path / PACKED).write_bytes(lzma.compress((tmp_path / RECORDS).read_bytes()))
    (tmp_path / RECORDS).unlink()
    with pytest.raises(RunError, match="unpack them: xz -d"):
        run(plan(), tmp_path, vlm, cases[:1], training, progress=silent)
