import base64
import errno
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from inspect import signature
from typing import Any

import pytest
from PIL import Image

from mmedit import storage
from mmedit.cases import Probe
from mmedit.cli.tables import report as report_command
from mmedit.errors import DataError, ImageError, RunError
from mmedit.records.schema import Locality, ProbeRecord, Record, RunManifest, Scores
from mmedit.report.render.page import EXAMPLES, write_report

WORDS: dict[str, Any] = {"title": "A run"}


def asked(prompt="colour?", *, target="red", image=None, said=(None, None), em=1.0, local=None):
    scores = Scores(token_accuracy=em, exact_match=em, log_prob=-1.0, n_tokens=1)
    return ProbeRecord(
        prompt=prompt,
        target=target,
        image=image,
        pre=scores.model_copy(update={"exact_match": 0.0}),
        post=scores,
        locality=local,
        generated_pre=said[0],
        generated_post=said[1],
    )


def agreement(share):
    return Locality(
        top1_answer=share,
        exact_answer=share,
        top1_all=share,
        top10_ordered_all=share,
        top10_set_answer=share,
        kl=0.0,
    )


def record(case_id="1", *, editor="mend", **probes):
    probes = {"reliability": asked(), **probes}
    return Record(
        case_id=case_id,
        editor=editor,
        seconds=0.1,
        batch=1,
        peak_memory_bytes=0,
        seed=0,
        probes={Probe(name): (example,) for name, example in probes.items()},
    )


def report(directory, *records, images=None, **options):
    path = write_report(directory, records, images=images or {}, **{**WORDS, **options})
    return path.read_text()


def verdicts(page):
    return re.findall(r'<li(?: class="(\w+)")?[^>]*><span class="editor">(\w+)', page)


def outcomes(page):
    """Return method, edit and locality of every answer, as the filter asks for them."""
    return re.findall(r'data-method="(\w*)" data-edit="(\w*)" data-locality="(\w*)"', page)


def test_the_page_is_written_into_the_folder_with_title_edits_and_methods(tmp_path):
    path = write_report(tmp_path / "run", [record()], images={}, **WORDS)
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text()
    assert "<title>A run</title>" in page
    assert "1 edits. Methods: mend." in page


def test_every_element_that_opens_closes(tmp_path):
    void = {"meta", "br", "img", "input"}
    opened = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in void:
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    local = asked(local=agreement(1.0), image="a", said=("7", "7"))
    records = [record(image_locality=local, editor=name) for name in ("base", "mend", "ft")]
    Balance().feed(report(tmp_path, *records, images=lambda name: None))
    assert opened == []


def test_prompts_targets_answers_and_names_are_escaped_everywhere(tmp_path):
    evil = "<script>alert('x')</script>"
    example = asked(evil, target=evil + "t", image=evil, said=(evil + "1", evil + "2"))
    manifest = RunManifest(
        command=evil,
        versions={evil: evil},
        vlm=evil,
        dataset=evil,
        limit=1,
        seed=0,
        editors=(evil,),
        config={},
        training_seconds={},
    )
    page = report(
        tmp_path,
        record(evil, editor=evil, reliability=example),
        title=evil,
        manifest=manifest,
        images=lambda name: None,
    )
    assert page.count("<script") == 1
    for suffix in ("t", "1", "2"):
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" + suffix in page


def test_nothing_is_loaded_from_outside(tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    page = report(tmp_path, record(reliability=asked(image="a")), images={"a": tmp_path / "a.png"})
    assert not re.search(r"https?://|url\(|<link|<script src|@import", page)
    assert re.findall(r'src="(data:image/webp;base64,)', page)
    assert "default-src 'none'" in page


def test_the_policy_of_the_page_allows_its_own_script_alone(tmp_path):
    page = report(tmp_path, record())
    [script] = re.findall(r"<script>(.+?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page


def test_request_rephrase_and_locality_images_are_embedded_as_thumbnails(tmp_path):
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (400, 200), colour).save(tmp_path / f"{name}.jpg")
    page = report(
        tmp_path,
        record(
            reliability=asked(image="a"),
            image_generality=asked(image="b"),
            image_locality=asked(image="c", local=agreement(1.0)),
        ),
        images=lambda name: tmp_path / f"{name}.jpg",
    )
    shown = re.findall(r'src="data:image/webp;base64,([^"]+)" alt="([\w ]+)"', page)
    assert [caption for _, caption in shown] == ["request", "image rephrase", "image locality"]
    sizes = {Image.open(io.BytesIO(base64.b64decode(webp))).size for webp, _ in shown}
    assert sizes == {(128, 64)}
    assert page.count('<img loading="lazy" decoding="async" width="128" height="64" src=') == 3


def test_an_image_that_is_not_to_be_had_leaves_a_placeholder(tmp_path):
    page = report(tmp_path, record(reliability=asked(image="gone")), images={})
    assert "no image" in page
    assert "<img" not in page


def test_an_image_whose_file_is_gone_leaves_a_placeholder_too(tmp_path):
    images = {"gone": tmp_path / "gone.png"}
    page = report(tmp_path, record(reliability=asked(image="gone")), images=images)
    assert "no image" in page
    assert "<img" not in page


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    with pytest.raises(ImageError, match=r"cannot show .*broken\.png"):
        report(
            tmp_path,
            record(reliability=asked(image="a")),
            images={"a": tmp_path / "broken.png"},
        )


@pytest.mark.parametrize(
    ("said", "verdict"),
    [(("blue", "red"), "right"), (("blue", " Red\n"), "right"), (("red", "blue"), "wrong")],
)
def test_an_answer_is_green_when_it_equals_the_target(tmp_path, said, verdict):
    page = report(tmp_path, record(reliability=asked(said=said)))
    assert verdicts(page) == [(verdict, "mend")]


@pytest.mark.parametrize(
    ("said", "verdict"), [(("blue", "blue"), "right"), (("blue", "red"), "wrong")]
)
def test_a_locality_answer_is_green_when_it_did_not_change(tmp_path, said, verdict):
    local = asked(said=said, local=agreement(1.0))
    page = report(tmp_path, record(reliability=asked(), text_locality=local))
    assert verdicts(page)[1] == (verdict, "mend")


def test_an_answer_that_was_not_generated_is_marked_by_its_exact_match(tmp_path):
    local = asked(local=agreement(0.0))
    page = report(tmp_path, record(reliability=asked(em=1.0), text_locality=local))
    assert verdicts(page) == [("right", "mend"), ("wrong", "mend")]
    assert "not generated; EM 0 → 1" in page
    assert "not generated; EM with the base model 0" in page


@pytest.mark.parametrize(
    ("reliable", "local", "outcome"),
    [
        (asked(said=("blue", "red")), asked(said=("7", "7"), local=agreement(1)), ("took", "kept")),
        (
            asked(said=("blue", "n")),
            asked(said=("7", "8"), local=agreement(0)),
            ("failed", "broken"),
        ),
        (asked(em=0.0), asked(local=agreement(1.0)), ("failed", "kept")),
    ],
)
def test_an_edit_took_and_its_locality_is_kept_if_those_answers_are_right(
    tmp_path, reliable, local, outcome
):
    page = report(tmp_path, record(reliability=reliable, text_locality=local))
    assert set(outcomes(page)) == {("mend", *outcome)}


def test_one_changed_answer_breaks_the_locality_of_the_edit(tmp_path):
    kept, changed = (asked(said=("7", said), local=agreement(1.0)) for said in "78")
    page = report(tmp_path, record(text_locality=kept, image_locality=changed))
    assert set(outcomes(page)) == {("mend", "took", "broken")}


def test_every_choice_of_the_filter_has_the_number_of_edits_it_shows(tmp_path):
    local = asked(local=agreement(1.0))
    page = report(
        tmp_path,
        record("1", editor="mend", text_locality=local),
        record("2", editor="mend", reliability=asked(em=0.0), text_locality=local),
        record("2", editor="ft"),
    )
    shown = re.findall(r'name="(\w+)" value="(\w*)".*?<span class="count">(\d+)<', page)
    assert shown == [
        ("method", "", "2"),
        ("method", "mend", "2"),
        ("method", "ft", "1"),
        ("edit", "", "2"),
        ("edit", "took", "2"),
        ("edit", "failed", "1"),
        ("locality", "", "2"),
        ("locality", "kept", "2"),
        ("locality", "broken", "0"),
    ]


def test_a_run_without_locality_probes_has_no_filter_by_locality(tmp_path):
    page = report(tmp_path, record())
    assert 'name="edit"' in page
    assert 'name="locality"' not in page


def test_the_gallery_shows_the_first_cases_under_every_method_that_edits(tmp_path):
    page = report(
        tmp_path,
        *(record(case, editor=name) for name in ("base", "mend", "ft") for case in "123"),
        examples=2,
    )
    assert re.findall(r"edit (\w+)</p>", page) == ["1", "2"]
    assert [editor for _, editor in verdicts(page)] == ["mend", "ft"] * 2


def test_a_method_that_lacks_a_case_or_a_split_is_left_out_there(tmp_path):
    page = report(
        tmp_path,
        record("1", editor="mend", portability=asked()),
        record("1", editor="ft"),
        record("2", editor="ft"),
    )
    assert [editor for _, editor in verdicts(page)] == ["mend", "ft", "mend", "ft"]


def test_the_table_shows_both_metrics_with_intervals_and_n(tmp_path):
    records = [record(str(i), reliability=asked(em=float(i > 1), image=f"{i}")) for i in range(4)]
    page = report(tmp_path, *records, examples=0)
    assert re.search(r'<th scope="colgroup" colspan="2">Rel</th>', page)
    assert len(re.findall(r"<td>50\.0 <small>±\d+\.\d</small></td>", page)) == 2
    assert "<td>4</td>" in page
    assert "bootstrap over images" in page
    assert "Edits to look at" not in page


def test_the_plot_has_reliability_and_image_locality_of_every_method(tmp_path):
    local = asked(local=agreement(0.25))
    page = report(tmp_path, record(editor="ft"), record(editor="mend", image_locality=local))
    dots = re.findall(r'class="lane (dot-\d)"><i[^>]*></i><b style="left:([\d.]+)%', page)
    assert dots == [("dot-0", "100.00"), ("dot-0", "100.00"), ("dot-1", "25.00")]
    assert "Image locality, exact match" in page


def test_the_manifest_adds_command_versions_and_training_time(tmp_path):
    manifest = RunManifest(
        command="mmedit bench --limit 7",
        versions={"torch": "2.13"},
        vlm="tiny",
        dataset="facts",
        limit=7,
        seed=3,
        editors=("mend",),
        config={},
        training_seconds={"mend": 321.0},
    )
    page = report(tmp_path, record(), manifest=manifest)
    for promised in ("mmedit bench --limit 7", "torch 2.13", "first 7 edits", "seed 3", "321"):
        assert promised in page


def test_every_run_makes_a_page_without_title_images_or_the_image_probes(tmp_path):
    page = write_report(
        tmp_path / "some run",
        [
            record("1", editor="ft", text_locality=asked(local=agreement(0.5))),
            record("2", editor="ft", text_locality=asked(local=agreement(0.5))),
        ],
        manifest=manifest_of(mode=None),
    ).read_text()
    assert "<title>tiny on facts</title>" in page
    assert "2 edits, each made by itself from the base model. Methods: ft." in page
    assert "Text locality, exact match" in page
    write_report(tmp_path / "another", [record()])
    assert "<title>another</title>" in (tmp_path / "another" / "report.html").read_text()


def manifest_of(mode):
    return RunManifest(
        command="mmedit bench",
        versions={},
        vlm="tiny",
        dataset="facts",
        limit=None,
        seed=0,
        editors=("ft",),
        config={"run": {"mode": mode} if mode else {}},
        training_seconds={},
    )


def test_the_page_of_a_sequence_has_its_plots_and_shows_edits_after_the_last_one(tmp_path):
    def tested(case, test, edits, place, said):
        one = record(case, editor="ft", reliability=asked(said=("", said)))
        return one.model_copy(update={"test": test, "edits": edits, "place": place})

    records = [
        tested("1", "edit", 1, 1, "at once"),
        tested("2", "edit", 2, 2, "at once"),
        tested("1", "checkpoint", 2, 1, "at last"),
        tested("2", "checkpoint", 2, 2, "at last"),
        tested("x", "ability", 2, 0, "beside"),
    ]
    mode = {"kind": "sequential", "orders": 1}
    page = report(tmp_path, *records, manifest=manifest_of(mode))
    assert page.count("data:image/svg+xml;base64,") == 1
    assert page.count("at last") == 2
    assert "at once" not in page
    assert "beside</span>" not in page
    assert re.search(r'<img class="figure" loading="lazy" [^>]*width="\d', page)
    assert "Each method is shown after its last edit" in page
    assert "2 edits. Methods: ft." in page


def test_an_edit_without_any_probe_is_left_out_of_the_gallery(tmp_path):
    empty = record("1").model_copy(update={"probes": {}})
    page = report(tmp_path, empty, record("2"))
    assert re.findall(r"edit (\w+)</p>", page) == ["2"]


def test_scores_stand_above_costs_and_intervals_in_a_line_of_their_own(tmp_path):
    page = report(tmp_path, record("1"), record("2"))
    scores, costs = page.split('<table class="methods">')[1:]
    assert ('<th scope="col">tok</th>' in scores, "s/edit</th>" in scores) == (True, False)
    assert ('<th scope="col">tok</th>' in costs, "s/edit</th>" in costs) == (False, True)
    assert ".methods td small { display: block;" in page


def test_a_page_that_cannot_be_written_is_an_error_and_keeps_the_old_one(tmp_path, monkeypatch):
    before = report(tmp_path, record())

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(RunError, match=r"report\.html: No space left"):
        report(tmp_path, record(), title="Another")
    assert (tmp_path / "report.html").read_text() == before


def test_no_records_make_no_page(tmp_path):
    with pytest.raises(DataError, match="no records"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_as_many_edits_as_the_page_of_a_run():
    assert signature(report_command).parameters["number"].default == EXAMPLES
