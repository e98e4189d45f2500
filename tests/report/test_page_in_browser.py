"""The report of a run in a real browser: filter, keyboard, names for screen readers, widths."""

import re

import pytest
from chromium import open_browser
from PIL import Image

from mmedit.cases import Probe
from mmedit.records.schema import Locality, ProbeRecord, Record, Scores
from mmedit.report.render.page import write_report

WIDTHS = (1280, 390)
EDITS = 3
TABLES = 2
KINDS = ("reliability", "text_generality", "image_generality", "text_locality", "image_locality")


def probed(kind, number, *, right):
    scores = Scores(token_accuracy=right, exact_match=right, log_prob=-1.0, n_tokens=1)
    agreement = dict.fromkeys(Locality.model_fields, float(right)) | {"kl": 0.0}
    local = "locality" in kind
    return ProbeRecord(
        prompt=f"{kind} of edit {number}, in a sentence that is not short",
        target="red",
        image=f"{number}" if kind != "text_locality" else None,
        pre=scores,
        post=scores,
        locality=Locality(**agreement) if local else None,
        generated_pre="blue",
        generated_post=("blue" if local else "red") if right else "something else",
    )


def record_of(number, editor, wrong=()):
    return Record(
        case_id=str(number),
        editor=editor,
        seconds=0.1,
        batch=1,
        peak_memory_bytes=0,
        seed=0,
        probes={Probe(kind): (probed(kind, number, right=kind not in wrong),) for kind in KINDS},
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page about three edits: FT fails the second one, MEND breaks the locality of the third."""
    folder = tmp_path_factory.mktemp("a run")
    for number in range(EDITS):
        Image.new("RGB", (200, 100), ("red", "green", "blue")[number]).save(
            folder / f"{number}.png"
        )
    records = [record_of(0, "FT"), record_of(1, "FT", {"reliability"}), record_of(2, "FT")]
    records += [
        record_of(0, "MEND"),
        record_of(1, "MEND"),
        record_of(2, "MEND", {"image_locality"}),
    ]
    records += [
        record_of(n, f"A method with a long name {i}") for n in range(EDITS) for i in range(6)
    ]
    page = write_report(folder, records, images=lambda name: folder / f"{name}.png")
    return page.as_uri()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as started:
        yield started


@pytest.fixture
def page(browser, address):
    """The page as it opens, at the larger width; a failing script or a request fails the test."""
    faults = []
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 900})
    opened = context.new_page()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("request", lambda sent: faults.extend([sent.url] * sent.url.startswith("http")))
    opened.goto(address)
    yield opened
    context.close()
    assert faults == []


def shown(page):
    return [text.split()[1] for text in page.locator(".case:visible > p").all_inner_texts()]


def choose(page, name):
    page.get_by_role("radio", name=re.compile(f"^{name} ")).first.check()


def count(page, name):
    return page.locator("label", has_text=re.compile(f"^{name} ")).locator(".count").inner_text()


def test_all_edits_are_shown_at_first(page):
    assert shown(page) == ["0", "1", "2"]
    assert page.get_by_role("status").inner_text() == "3 of 3 edits shown"
    assert page.get_by_role("button", name="Show all").count() == 0


def test_a_method_alone_has_its_own_answers_alone(page):
    choose(page, "FT")
    assert shown(page) == ["0", "1", "2"]
    answers = page.locator(".answers > li:visible")
    assert answers.count() == EDITS * len(KINDS)
    assert {text.split()[0] for text in answers.all_inner_texts()} == {"FT"}


def test_method_and_outcome_together_leave_the_edits_that_have_both(page):
    choose(page, "FT")
    choose(page, "failed")
    assert shown(page) == ["1"]
    assert page.get_by_role("status").inner_text() == "1 of 3 edits shown"
    choose(page, "MEND")
    assert shown(page) == []
    assert "no edit has this outcome" in page.get_by_role("status").inner_text()


def test_the_count_of_a_choice_follows_the_other_choices(page):
    assert (count(page, "failed"), count(page, "broken")) == ("1", "1")
    choose(page, "MEND")
    assert (count(page, "failed"), count(page, "broken")) == ("0", "1")
    choose(page, "broken")
    assert shown(page) == ["2"]
    assert count(page, "FT") == "0"


def test_the_keyboard_alone_filters_and_shows_all_again(page):
    page.get_by_role("radio", name=re.compile("^all")).first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown(page) == ["1"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Show all"
    page.keyboard.press("Enter")
    assert shown(page) == ["0", "1", "2"]
    assert page.evaluate("document.activeElement.name") == "method"


def test_a_screen_reader_finds_the_names_of_all_parts(page):
    tree = page.locator("form.filter").aria_snapshot()
    for part in ('form "Filter the edits"', 'group "Method"', 'group "Edit"', 'group "Locality"'):
        assert part in tree
    assert 'radio "failed 1"' in tree
    assert "status: 3 of 3 edits shown" in tree
    tables = page.get_by_role("region")
    assert tables.count() == TABLES
    assert page.get_by_role("img", name="image locality").count() == EDITS


def test_the_address_keeps_the_choice(page, address):
    choose(page, "MEND")
    choose(page, "broken")
    assert page.url == f"{address}#method=MEND&locality=broken"
    page.reload()
    assert shown(page) == ["2"]
    page.goto(f"{address}#method=none+of+them&edit=failed")
    assert shown(page) == ["1"]


def test_without_scripts_everything_is_shown(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert shown(page) == ["0", "1", "2"]
    assert page.locator(".answers > li:visible").count() == EDITS * len(KINDS) * 8
    assert not page.locator("form.filter").is_visible()
    context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_at_the_side(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = page.evaluate(
        """[...document.querySelectorAll("body *")].filter((e) =>
            !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1
        ).map((e) => e.className)"""
    )
    assert over == []


def test_a_table_that_is_too_wide_scrolls_in_its_own_box_and_says_so(page):
    hint = page.locator(".hint").first
    assert not hint.is_visible()
    page.set_viewport_size({"width": WIDTHS[1], "height": 900})
    hint.wait_for(state="visible")
    box = page.get_by_role("region", name="Scores of the methods")
    box.focus()
    page.keyboard.press("End")
    box.evaluate("box => { box.scrollLeft = box.scrollWidth }")
    hint.wait_for(state="hidden")
    method = box.locator("tbody th").first.bounding_box()
    assert method["x"] == pytest.approx(box.bounding_box()["x"], abs=2)


def test_pictures_have_their_size_before_they_are_loaded(page):
    for picture in page.locator(".pictures img").all():
        assert picture.get_attribute("loading") == "lazy"
        assert (picture.get_attribute("width"), picture.get_attribute("height")) == ("128", "64")
    last = page.locator(".pictures img").last
    last.scroll_into_view_if_needed()
    assert last.evaluate("img => img.decode().then(() => img.naturalWidth)") == 128


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_colour_schemes(page, scheme):
    page.emulate_media(color_scheme=scheme)
    for selector in ("p.soft", ".right .after", ".wrong .after", ".filter .count", "td small"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector


CONTRAST = """(selector) => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => rgb(text).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  let behind = element;
  while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const colours = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  const both = colours.map(light);
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


def test_a_printed_page_is_light_and_has_no_controls(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 250)"
    assert page.locator("form.filter input:visible").count() == 0
    assert page.get_by_role("status").is_visible()
