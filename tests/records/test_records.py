import errno
import gc
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmedit import storage
from mmedit.cases import Probe
from mmedit.errors import DataError, RunError
from mmedit.records.schema import Content, Locality, ProbeRecord, Record, RunManifest, Scores
from mmedit.records.store import (
    MANIFEST,
    RECORDS,
    RecordWriter,
    read_manifest,
    read_records,
    write_manifest,
)


def record(case_id="1", *, image: str | None = "a.png", prompt="colour?", log_prob=-0.5):
    scores = Scores(token_accuracy=1.0, exact_match=1.0, log_prob=log_prob, n_tokens=1)
    asked = ProbeRecord(prompt=prompt, target="red", image=image, pre=scores, post=scores)
    return Record(
        case_id=case_id,
        editor="ft",
        seconds=0.1,
        batch=1,
        peak_memory_bytes=0,
        seed=0,
        probes={Probe.RELIABILITY: (asked,)},
    )


def manifest(**changes):
    fields = {
        "command": "mmedit bench",
        "versions": {"torch": "2.13"},
        "vlm": "tiny",
        "dataset": "facts",
        "limit": None,
        "seed": 0,
        "editors": ("ft",),
        "config": {},
        "training_seconds": {},
    }
    return RunManifest(**fields | changes)


def write(path, *records):
    with RecordWriter(path) as writer:
        for each in records:
            writer.append(each)


def test_what_was_appended_is_read_back_in_order(tmp_path):
    written = [record("1"), record("2", image=None)]
    write(tmp_path / RECORDS, *written)
    assert read_records(tmp_path / RECORDS) == written
    assert read_records(tmp_path) == written


def test_a_record_is_on_disk_before_the_writer_closes(tmp_path):
    with RecordWriter(tmp_path / RECORDS) as writer:
        writer.append(record())
        assert read_records(tmp_path) == [record()]


def test_nan_and_infinity_survive_in_a_file_that_every_json_parser_reads(tmp_path):
    write(tmp_path / RECORDS, record("1", log_prob=math.nan), record("2", log_prob=-math.inf))
    nan, infinity = (r.probes[Probe.RELIABILITY][0].post.log_prob for r in read_records(tmp_path))
    assert math.isnan(nan)
    assert infinity == -math.inf

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / RECORDS).read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_prompt_with_unicode_line_separators_stays_one_record(tmp_path):
    odd = [record(case, prompt="a\u2028b\x85c\r\nd\0") for case in "12"]
    write(tmp_path / RECORDS, *odd)
    assert read_records(tmp_path) == odd


def test_a_torn_last_line_is_ignored_on_reading(tmp_path):
    write(tmp_path / RECORDS, record("1"), record("2"))
    content = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(content[:-20])
    assert [r.case_id for r in read_records(tmp_path)] == ["1"]


def test_a_torn_last_line_is_dropped_before_the_next_record_is_written(tmp_path):
    write(tmp_path / RECORDS, record("1"), record("2"))
    content = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(content[:-20])
    write(tmp_path / RECORDS, record("3"))
    assert [r.case_id for r in read_records(tmp_path)] == ["1", "3"]


def test_a_resumed_writer_tells_which_records_were_already_there(tmp_path):
    write(tmp_path / RECORDS, record("1"), record("2"))
    with RecordWriter(tmp_path / RECORDS) as writer:
        assert writer.earlier == (record("1"), record("2"))
    with RecordWriter(tmp_path / "other" / RECORDS) as writer:
        assert writer.earlier == ()


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from mmedit.records.schema import Record
from mmedit.records.store import RecordWriter
line = sys.stdin.read()
with RecordWriter(Path(sys.argv[1])) as writer:
    writer.append(Record.model_validate_json(line))
    os.write(writer._file.fileno(), line[:50].encode())
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_loses_no_record_and_leaves_no_lock(tmp_path):
    line = record("1").model_dump_json()
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / RECORDS)]
    killed = subprocess.run(command, input=line, text=True, check=False)
    assert killed.returncode < 0
    write(tmp_path / RECORDS, record("2"))
    assert [r.case_id for r in read_records(tmp_path)] == ["1", "2"]


OPENED_BY_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from mmedit.records.store import RecordWriter
from mmedit.errors import RunError
try:
    with RecordWriter(Path(sys.argv[1])):
        pass
except RunError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_second_process_on_the_same_run_directory_is_refused(tmp_path):
    command = [sys.executable, "-c", OPENED_BY_ANOTHER_PROCESS, str(tmp_path / RECORDS)]
    with RecordWriter(tmp_path / RECORDS):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"refused: {tmp_path} is being written by another process" in second.stderr
    with RecordWriter(tmp_path / RECORDS):
        pass


def test_a_second_writer_in_the_same_process_is_refused_too(tmp_path):
    with RecordWriter(tmp_path / RECORDS) as writer:
        with (
            pytest.raises(RunError, match="another run directory"),
            RecordWriter(tmp_path / RECORDS),
        ):
            pass
        writer.append(record())
    assert len(read_records(tmp_path)) == 1


def test_a_full_disk_is_named_and_costs_no_earlier_record(tmp_path):
    resource = pytest.importorskip("resource", reason="no file size limit on this platform")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RecordWriter(tmp_path / RECORDS) as writer:
        writer.append(record("1"))
        size = (tmp_path / RECORDS).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))
        try:
            with pytest.raises(
                RunError, match=r"records\.jsonl.*records written before are intact"
            ):
                writer.append(record("2"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / RECORDS).stat().st_size == size + 40  # the disk did tear the line
        assert [r.case_id for r in read_records(tmp_path)] == ["1"]
        writer.append(record("3"))
    assert [r.case_id for r in read_records(tmp_path)] == ["1", "3"]


def test_the_records_of_a_batch_are_forced_to_disk_once(tmp_path, monkeypatch):
    forced, fsync = [], os.fsync
    monkeypatch.setattr(storage.os, "fsync", lambda file: forced.append(file) or fsync(file))
    with RecordWriter(tmp_path / RECORDS) as writer:
        writer.append(record("1"), record("2"), record("3"))
    assert len(forced) == 1
    assert [r.case_id for r in read_records(tmp_path)] == ["1", "2", "3"]


def test_a_disk_that_fills_up_within_a_batch_keeps_its_whole_lines(tmp_path):
    resource = pytest.importorskip("resource", reason="no file size limit on this platform")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = len(record("1").model_dump_json()) + 1
    with RecordWriter(tmp_path / RECORDS) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (line + 40, hard))
        try:
            with pytest.raises(RunError, match="records written before are intact"):
                writer.append(record("1"), record("2"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r.case_id for r in read_records(tmp_path)] == ["1"]


def test_a_record_that_could_not_be_forced_to_disk_is_an_error(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RecordWriter(tmp_path / RECORDS) as writer:
        monkeypatch.setattr(storage.os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            writer.append(record())


def test_a_run_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(RunError, match=r"cannot write .*file/run/records\.jsonl"),
        RecordWriter(tmp_path / "file" / "run" / RECORDS),
    ):
        pass


def test_appending_to_a_closed_writer_is_an_error(tmp_path):
    with pytest.raises(RunError, match="not open"):
        RecordWriter(tmp_path / RECORDS).append(record())


@pytest.mark.parametrize(
    ("row", "problem"),
    [("{not json", "Invalid JSON"), ("{}", "case_id: Field required"), ("", "Invalid JSON")],
)
def test_a_malformed_line_is_named_by_file_and_row(tmp_path, row, problem):
    first, second, third = (record(case).model_dump_json() for case in "123")
    (tmp_path / RECORDS).write_text(f"{first}\n{second}\n{row}\n{third}\n")
    with pytest.raises(DataError, match=rf"records\.jsonl, row 3: {problem}"):
        read_records(tmp_path)


def test_a_malformed_line_stops_a_resumed_run_before_it_starts(tmp_path):
    (tmp_path / RECORDS).write_text("{}\n")
    with pytest.raises(DataError, match="row 1"), RecordWriter(tmp_path / RECORDS):
        pass
    (tmp_path / RECORDS).write_text("")
    write(tmp_path / RECORDS, record())  # and the lock is free again


def test_a_record_that_is_there_twice_stops_reading_and_a_resumed_run(tmp_path):
    write(tmp_path / RECORDS, record("1"), record("2"))
    with (tmp_path / RECORDS).open("a") as file:
        file.write(record("1").model_dump_json() + "\n")
    problem = r"records\.jsonl, row 3: the record of ft, case '1' is in row 1 already"
    with pytest.raises(DataError, match=problem):
        read_records(tmp_path)
    with pytest.raises(DataError, match=problem), RecordWriter(tmp_path / RECORDS):
        pass


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\n", b"\0\n", b"[" * 100_000 + b"\n", b'{"case_id": ' + b'"x' * 100_000 + b"\n"],
    ids=["not UTF-8", "NUL", "deep", "long"],
)
def test_a_damaged_file_is_one_short_line(tmp_path, content):
    (tmp_path / RECORDS).write_bytes(content)
    (tmp_path / MANIFEST).write_bytes(content)
    for read in (read_records, read_manifest):
        with pytest.raises(DataError) as caught:
            read(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    for name in (RECORDS, MANIFEST):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder" / RECORDS).mkdir(parents=True)
    for read, path in (
        (read_records, tmp_path),
        (read_manifest, tmp_path),
        (read_records, tmp_path / RECORDS),
        (read_records, tmp_path / "folder"),
    ):
        with pytest.raises(DataError, match="it is not a regular file; give a"):
            read(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000], ids=["NUL", "long"])
def test_a_name_that_cannot_be_a_path_is_refused_in_one_short_line(name):
    for read in (read_records, read_manifest):
        with pytest.raises(DataError, match="cannot read") as caught:
            read(Path(name))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("is_on", [True, False])
def test_reading_records_leaves_garbage_collection_as_it_was(tmp_path, is_on):
    write(tmp_path / RECORDS, record("1"))
    (tmp_path / "broken.jsonl").write_text("{}\n")
    try:
        (gc.enable if is_on else gc.disable)()
        read_records(tmp_path)
        with pytest.raises(DataError):
            read_records(tmp_path / "broken.jsonl")
        assert gc.isenabled() == is_on
    finally:
        gc.enable()


def test_missing_records_say_what_to_give_instead(tmp_path):
    with pytest.raises(DataError, match=r"give a run directory that holds records\.jsonl"):
        read_records(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        read_records(tmp_path / "nowhere")


def test_an_empty_run_says_to_run_the_benchmark_first(tmp_path):
    write(tmp_path / RECORDS)
    with pytest.raises(DataError, match="holds no record yet; run the benchmark"):
        read_records(tmp_path)


def test_the_content_of_a_record_is_its_request_whatever_the_case_is_called():
    assert record("7").content == Content("colour?", "red", "a.png") == record("8").content
    assert record("7", image=None).content != record("7").content
    without_request = [record(case).model_copy(update={"probes": {}}) for case in ("7", "8")]
    assert without_request[0].content != without_request[1].content


def test_a_record_is_finite_if_its_scores_before_and_after_and_its_locality_are():
    assert record().is_finite
    assert not record(log_prob=math.nan).is_finite
    assert not record(log_prob=-math.inf).is_finite
    [asked] = record().probes[Probe.RELIABILITY]
    moved = Locality(**dict.fromkeys(Locality.model_fields, 1.0) | {"kl": math.nan})
    assert not asked.model_copy(update={"locality": moved}).is_finite
    kept = moved.model_copy(update={"kl": math.inf})  # a distance, not an output
    assert asked.model_copy(update={"locality": kept}).is_finite
    before = asked.pre.model_copy(update={"log_prob": math.nan})
    assert not asked.model_copy(update={"pre": before}).is_finite


def test_a_manifest_read_back_equals_the_one_written(tmp_path):
    config = {"lr": 1e-3, "sites": ("fc1", "fc2"), "root": Path("data"), "clip": math.inf}
    written = manifest(config=config, limit=5, training_seconds={"mend": 1.5})
    write_manifest(tmp_path / "run", written)
    assert read_manifest(tmp_path / "run") == written
    assert [path.name for path in (tmp_path / "run").iterdir()] == [MANIFEST]


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_manifest(tmp_path, manifest(seed=1))

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(RunError, match=r"manifest\.json: No space left.*unchanged"):
        write_manifest(tmp_path, manifest(seed=2))
    assert read_manifest(tmp_path).seed == 1
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_missing_or_foreign_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match="a benchmark run wrote"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json: command: Field required"):
        read_manifest(tmp_path)
