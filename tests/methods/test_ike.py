from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_sentences import save_encoder, saved_encoder
from torch import Tensor

from mmedit.adapters.generation import Answer
from mmedit.cases import EditCase, Example, Probe
from mmedit.config import load_editor
from mmedit.deltas import Dense
from mmedit.editors.fitting import Fitting
from mmedit.errors import ConfigError, DataError, EditorError, ModelError
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.methods.ike.context import InContextVLM
from mmedit.vlm.identity import Identity
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Captured, Predictions
from mmedit.vlm.wrapped import WrappedVLM

NAMES = ("east", "northeast", "northwest", "west", "southwest", "southeast")
DEGREES = {name: 60.0 * number for number, name in enumerate(NAMES)}
"""Training prompts lie evenly around a circle, so that their mean is its centre."""
IMAGE_ALONE = "a photo of"
"""The prompt where only images are compared."""

REQUEST = Example(prompt="what color is the shape?", target="blue")
OTHER = Example(prompt="is there a red circle in the image?", target="no")
SHORT = Example(prompt="a photo of", target="blue")
SHORTER = Example(prompt="is there", target="no")
PROBES = [
    Example(prompt="a photo of", target="a small teal triangle"),
    Example(prompt="which color does the rectangle have?", target="yes"),
]


def degrees_of(prompt: str) -> float:
    first = prompt.split()[0]
    return 0.0 if prompt == IMAGE_ALONE else DEGREES[first] if first in DEGREES else float(first)


class OnCircle(WrappedVLM):
    """A VLM that places a prompt where its first word, a direction or an angle, says."""

    def __init__(self, inner: VLM) -> None:
        super().__init__(inner)
        self.asked: list[Example] = []

    def rewrap(self, inner: VLM) -> OnCircle:
        return OnCircle(inner)

    @property
    def base(self) -> OnCircle:
        return self

    def represent(self, examples: Sequence[Example]) -> Tensor:
        self.asked += examples
        angles = [math.radians(degrees_of(example.prompt)) for example in examples]
        return torch.tensor([[5 + 2 * math.cos(a), 2 * math.sin(a) - 1] for a in angles])

    def predict(self, examples: Sequence[Example], **how: Any) -> Predictions:
        return self.inner.predict(examples, **how)

    def answer(self, examples: Sequence[Example], **how: Any) -> list[Answer]:
        return self.inner.answer(examples, **how)

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        return self.inner.capture(examples, sites)

    def select(self, rows: Sequence[int]) -> OnCircle:
        return OnCircle(self.inner.select(rows))


@pytest.fixture
def circle(tiny_vlm: NetworkVLM) -> OnCircle:
    return OnCircle(tiny_vlm)


def training_cases() -> list[EditCase]:
    return [
        EditCase(
            id=name,
            request=Example(prompt=f"{name} request", target=f"{name} answer"),
            probes={
                Probe.TEXT_GENERALITY: (Example(prompt=f"{name} rephrase", target="rephrased"),),
                Probe.TEXT_LOCALITY: (Example(prompt=f"{name} unrelated", target="elsewhere"),),
            },
        )
        for name in NAMES
    ]


def fitted(vlm: VLM, **settings: object) -> IKE:
    return IKE(IKEConfig.model_validate({"k": 3} | settings)).fit(vlm, Fitting(training_cases()))


def at(angle: float, *, target: str = "new") -> Example:
    return Example(prompt=f"{angle} question", target=target)


def context_of(vlm: VLM) -> str:
    assert isinstance(vlm, InContextVLM)
    assert isinstance(vlm.context, str)
    return vlm.context


def contexts_of(vlm: VLM) -> tuple[str, ...]:
    assert isinstance(vlm, InContextVLM)
    assert isinstance(vlm.context, tuple)
    return vlm.context


def shown_in(context: str) -> list[str]:
    """The names of the training cases that a context shows, in order."""
    facts = [part for part in context.split("New Fact: ")[1:] if " request " in part]
    return [fact.split()[0] for fact in facts]


# The text


def test_context_is_the_demonstrations_then_the_new_fact_then_the_prompt(circle: OnCircle):
    edited = fitted(circle, k=3).apply(circle, [at(61.0, target="new")])
    assert context_of(edited) == (
        "New Fact: northeast request northeast answer\nPrompt: northeast rephrase rephrased\n\n"
        "New Fact: northwest request northwest answer\nPrompt: northwest unrelated elsewhere\n\n"
        "New Fact: east request east answer\nPrompt: east request east answer\n\n"
        "New Fact: 61.0 question new\nPrompt: "
    )


def test_demonstrations_copy_rephrase_and_leave_alone_in_turn(circle: OnCircle):
    context = context_of(fitted(circle, k=6).apply(circle, [at(0)]))
    prompts = [block.split("Prompt: ")[1] for block in context.split("\n\n")[:-1]]
    assert set(prompts) == {
        "east request east answer",
        "northeast rephrase rephrased",
        "northwest unrelated elsewhere",
        "west request west answer",
        "southwest rephrase rephrased",
        "southeast unrelated elsewhere",
    }


def test_case_without_the_probe_for_its_turn_is_copied(circle: OnCircle):
    bare = [EditCase(id=case.id, request=case.request) for case in training_cases()]
    editor = IKE(IKEConfig(k=2))
    editor = editor.fit(circle, Fitting(bare))
    context = context_of(editor.apply(circle, [at(59)]))
    assert context.startswith(
        "New Fact: northeast request northeast answer\nPrompt: northeast request northeast answer\n"
    )


def test_several_requests_together_list_all_facts(circle: OnCircle):
    requests = [at(1, target="first"), at(2, target="second"), at(3, target="last")]
    context = context_of(fitted(circle, k=1).apply(circle, requests))
    assert context.endswith(
        "\n\nNew Fact: 1 question first\nNew Fact: 2 question second\nNew Fact: 3 question last\n"
        "Prompt: "
    )
    assert shown_in(context) == ["east"]


def test_no_requests_change_nothing(circle: OnCircle):
    editor = fitted(circle)
    assert editor.apply(circle, []) is circle
    assert editor.apply_each(circle, []) is circle


# Retrieval


@pytest.mark.parametrize(
    ("angle", "nearest"),
    [
        (10, ["east", "northeast", "southeast", "northwest", "southwest", "west"]),
        (-10, ["east", "southeast", "northeast", "southwest", "northwest", "west"]),
        (125, ["northwest", "west", "northeast", "southwest", "east", "southeast"]),
    ],
)
@pytest.mark.parametrize("k", [1, 3, 6, 40])
def test_nearest_cases_are_shown_nearest_first(
    circle: OnCircle, angle: float, nearest: list[str], k: int
):
    context = context_of(fitted(circle, k=k).apply(circle, [at(angle)]))
    assert shown_in(context) == nearest[:k]


def test_requests_together_share_the_demonstrations_each_its_nearest_first(circle: OnCircle):
    editor = fitted(circle, k=3)
    context = context_of(editor.apply(circle, [at(10), at(170)]))
    assert shown_in(context) == ["east", "west", "northeast"]
    same = context_of(editor.apply(circle, [at(10), at(11)]))
    assert shown_in(same) == ["east", "northeast", "southeast"]


@pytest.mark.parametrize("encoded", [False, True])
def test_equally_near_cases_are_shown_in_their_order(circle: OnCircle, encoded: bool):
    """As many there are with one fact about different images."""
    fact = Example(prompt="east request", target="east answer")
    alike = [
        EditCase(
            id=str(number),
            request=fact,
            probes={Probe.TEXT_GENERALITY: (Example(prompt=f"{number} rephrase", target="t"),)},
        )
        for number in range(120)
    ]
    encoder = saved_encoder() if encoded else None
    editor = IKE(IKEConfig(k=100, retrieval="text", sentence_encoder=encoder))
    editor = editor.fit(circle, Fitting([*alike, *training_cases()[1:]]))
    prompts = context_of(editor.apply(circle, [fact])).split("Prompt: ")
    shown = [int(prompt.split()[0]) for prompt in prompts if " rephrase " in prompt]
    assert shown == list(range(1, 100, 3))


def test_equal_demonstrations_of_two_cases_are_both_shown(circle: OnCircle):
    """Together or apart: else one edit would be another one in a batch than alone."""
    twins = [
        EditCase(id=str(number), request=Example(prompt="east request", target="t"))
        for number in range(2)
    ]
    editor = IKE(IKEConfig(k=2)).fit(circle, Fitting([*twins, *training_cases()[2:]]))
    alone = context_of(editor.apply(circle, [at(0)]))
    assert shown_in(alone) == ["east", "east"]
    assert contexts_of(editor.apply_each(circle, [at(0), at(0)])) == (alone, alone)


@pytest.mark.parametrize("retrieval", ["text", "image", "both"])
def test_what_is_compared_is_what_the_setting_says(circle: OnCircle, retrieval: str):
    picture = Image.new("RGB", (8, 8))
    with_image = replace(at(0), image=picture)
    editor = fitted(circle, retrieval=retrieval)
    circle.asked.clear()
    editor.apply(circle, [with_image])
    (asked,) = circle.asked
    assert asked.image is (None if retrieval == "text" else picture)
    assert (asked.prompt == IMAGE_ALONE) == (retrieval == "image")


@pytest.mark.parametrize(("retrieval", "seen"), [("text", None), ("both", IMAGE_ALONE)])
def test_a_sentence_encoder_compares_the_new_facts_and_the_vlm_the_images(
    circle: OnCircle, retrieval: str, seen: str | None
):
    editor = fitted(circle, k=1, retrieval=retrieval, sentence_encoder=saved_encoder())
    for name in ("east", "west"):
        circle.asked.clear()
        request = Example(prompt=f"{name} request", target=f"{name} answer")
        assert shown_in(context_of(editor.apply(circle, [request])))[0] == name
        assert [asked.prompt for asked in circle.asked] == ([seen] if seen else [])


def test_sentence_encoder_has_no_effect_without_texts():
    for settings, why in (({"k": 0}, "with k=0"), ({"retrieval": "image"}, "retrieval=image")):
        with pytest.raises(ConfigError, match=f"sentence_encoder has no effect .*{why}"):
            load_editor("ike", "embedded", sentence_encoder="a/b", **settings)


def test_a_saved_index_is_refused_with_another_sentence_encoder(circle: OnCircle, tmp_path: Path):
    folder = tmp_path / "encoder"
    save_encoder(folder)
    settings = {"retrieval": "text", "sentence_encoder": str(folder)}
    editor = fitted(circle, **settings)
    editor.save(tmp_path / "editor")
    loaded = IKE.load(tmp_path / "editor")
    contexts = [context_of(one.apply(circle, [at(0)])) for one in (editor, loaded)]
    assert contexts[0] == contexts[1]
    save_encoder(folder, seed=1)
    with pytest.raises(EditorError, match="fitted with another sentence encoder"):
        IKE.load(tmp_path / "editor")


def test_more_cases_than_go_in_one_batch_are_all_indexed(circle: OnCircle):
    many = [
        EditCase(id=str(n), request=Example(prompt=f"{n} request", target="t")) for n in range(150)
    ]
    editor, reports = IKE(IKEConfig(k=1)), []
    fitting = Fitting(many, progress=lambda _, done, total, figures: reports.append((done, total)))
    editor = editor.fit(circle, fitting)
    assert reports == [(64, 150), (128, 150), (150, 150)]
    # The mean lies inside the arc: seen from there no two cases are in the same direction.
    assert all(
        shown_in(context_of(editor.apply(circle, [at(n)]))) == [str(n)] for n in (0, 63, 64, 149)
    )


def test_real_representations_find_the_case_that_is_the_request(tiny_vlm: NetworkVLM):
    prompts = ["what color is the shape?", "a photo of", "is there a red circle in the image?"]
    cases = [EditCase(id=p, request=Example(prompt=p, target="yes")) for p in prompts]
    editor = IKE(IKEConfig(k=1))
    editor = editor.fit(tiny_vlm, Fitting(cases))
    for prompt in prompts:
        context = context_of(editor.apply(tiny_vlm, [Example(prompt=prompt, target="no")]))
        assert context.startswith(f"New Fact: {prompt} yes\n")


# What must come first


def test_without_demonstrations_nothing_must_be_fitted(tiny_vlm: NetworkVLM):
    editor = IKE(IKEConfig(k=0))
    assert not editor.needs_fit
    together = editor.apply(tiny_vlm, [REQUEST, OTHER])
    assert context_of(together) == (
        "New Fact: what color is the shape? blue\n"
        "New Fact: is there a red circle in the image? no\nPrompt: "
    )
    assert contexts_of(editor.apply_each(tiny_vlm, [REQUEST, OTHER])) == (
        "New Fact: what color is the shape? blue\nPrompt: ",
        "New Fact: is there a red circle in the image? no\nPrompt: ",
    )


def test_editor_that_was_not_fitted_says_so(tiny_vlm: NetworkVLM):
    editor = IKE(IKEConfig(k=2))
    assert editor.needs_fit
    assert not editor.is_fitted
    for apply in (editor.apply, editor.apply_each):
        with pytest.raises(EditorError, match="IKE has not been fitted"):
            apply(tiny_vlm, [REQUEST])


def test_editor_cannot_be_fitted_on_nothing(tiny_vlm: NetworkVLM):
    with pytest.raises(DataError, match="none were given"):
        IKE(IKEConfig()).fit(tiny_vlm, Fitting([]))


def test_editor_fitted_on_another_vlm_is_refused(circle: OnCircle):
    class Another(OnCircle):
        @property
        def identity(self) -> Identity:
            return self.inner.identity._replace(weights="another")

    with pytest.raises(EditorError, match="same config with other weights"):
        fitted(circle).apply(Another(circle.inner), [at(0)])


# Answers under the context


def same(found: Predictions, wanted: Predictions) -> bool:
    """Equal where there is text; there is none where a row is padded."""
    return torch.equal(found.target, wanted.target) and torch.allclose(
        found.logits[found.is_text], wanted.logits[wanted.is_text], atol=1e-5
    )


def test_answers_are_those_of_the_network_after_the_context(tiny_vlm: NetworkVLM):
    edited = IKE(IKEConfig(k=0)).apply(tiny_vlm, [REQUEST])
    prefixed = [replace(probe, context=context_of(edited)) for probe in PROBES]
    assert same(edited.predict(PROBES), tiny_vlm.predict(prefixed))
    assert edited.generate(PROBES, max_new_tokens=4) == tiny_vlm.generate(
        prefixed, max_new_tokens=4
    )
    assert torch.equal(edited.represent(PROBES), tiny_vlm.represent(prefixed))
    site = tiny_vlm.sites("language")[0]
    found, wanted = edited.capture(PROBES, [site]), tiny_vlm.capture(prefixed, [site])
    assert torch.equal(found.delta[site], wanted.delta[site])


def test_context_changes_the_answer_but_belongs_to_no_metric(tiny_vlm: NetworkVLM):
    edited = IKE(IKEConfig(k=0)).apply(tiny_vlm, [REQUEST])
    before, after = tiny_vlm.predict(PROBES), edited.predict(PROBES)
    assert torch.equal(before.target, after.target)
    assert torch.equal(before.is_answer, after.is_answer)
    answers = before.logits[before.is_answer], after.logits[after.is_answer]
    assert not torch.allclose(*answers, atol=1e-2)


def test_separate_edits_have_the_contexts_of_edits_done_one_by_one(circle: OnCircle):
    editor = fitted(circle, k=2)
    requests = [at(1), at(121), at(299)]
    alone = [context_of(editor.apply(circle, [request])) for request in requests]
    assert contexts_of(editor.apply_each(circle, requests)) == tuple(alone)


def test_separate_edits_answer_each_row_after_its_own_context(tiny_vlm: NetworkVLM):
    editor = IKE(IKEConfig(k=0))
    requests = [REQUEST, OTHER, SHORT]
    probes = [PROBES[0], PROBES[1], PROBES[0]]
    together = editor.apply_each(tiny_vlm, requests).predict(probes)
    for row, (request, probe) in enumerate(zip(requests, probes, strict=True)):
        alone = editor.apply(tiny_vlm, [request]).predict([probe])
        found = together.logits[row][together.is_text[row]]
        torch.testing.assert_close(found, alone.logits[alone.is_text], rtol=0, atol=1e-4)


def test_rows_are_selected_with_their_context(tiny_vlm: NetworkVLM):
    editor = IKE(IKEConfig(k=0))
    each = editor.apply_each(tiny_vlm, [REQUEST, OTHER])
    chosen = each.select([1, 1, 0])
    first, second = contexts_of(each)
    assert contexts_of(chosen) == (second, second, first)
    wanted = [replace(PROBES[0], context=context) for context in (second, second, first)]
    assert same(chosen.predict([PROBES[0]] * 3), tiny_vlm.predict(wanted))
    one = editor.apply(tiny_vlm, [REQUEST])
    assert context_of(one.select([0, 0, 0])) == context_of(one)


def test_as_many_rows_as_separate_edits_are_wanted(tiny_vlm: NetworkVLM):
    each = IKE(IKEConfig(k=0)).apply_each(tiny_vlm, [REQUEST, OTHER])
    with pytest.raises(DataError, match="2 separate edits cannot answer 1 rows"):
        each.predict(PROBES[:1])


def test_edits_one_after_another_have_the_context_of_edits_made_together(circle: OnCircle):
    """Each finds its demonstrations as the base model represents it, not behind the others."""
    editor = fitted(circle, k=4)
    requests = [at(10), at(130), at(-70, target="b"), at(181)]
    edited: VLM = circle
    for number, request in enumerate(requests, start=1):
        edited = editor.apply(edited, [request])
        assert context_of(edited) == context_of(editor.apply(circle, requests[:number]))
    assert context_of(edited).count("Prompt: ") == 4 + 1
    assert "Prompt: New Fact" not in context_of(edited)


def test_separate_edits_come_after_those_of_all_rows_and_before_further_ones(circle: OnCircle):
    editor = fitted(circle, k=2)
    first, *each, last = [at(10), at(130), at(250), at(181)]
    edited = editor.apply(editor.apply_each(editor.apply(circle, [first]), each), [last])
    assert contexts_of(edited) == tuple(
        context_of(editor.apply(circle, [first, own, last])) for own in each
    )
    with pytest.raises(DataError, match="2 separate edits cannot answer 1 rows"):
        editor.apply_each(edited, [last])


@pytest.mark.parametrize("made", ["weights", "context"])
def test_the_nearest_cases_are_those_of_the_base_model(tiny_vlm: NetworkVLM, made: str):
    prompts = ["what color is the shape?", "a photo of", "is there a red circle in the image?"]
    cases = [EditCase(id=p, request=Example(prompt=p, target="yes")) for p in prompts]
    editor = IKE(IKEConfig(k=1)).fit(tiny_vlm, Fitting(cases))
    site = tiny_vlm.sites("language")[0]
    noise = torch.randn(tiny_vlm.shape(site), generator=torch.Generator().manual_seed(0))
    edited = (
        tiny_vlm.with_deltas({site: Dense(10 * noise)})
        if made == "weights"
        else IKE(IKEConfig(k=0)).apply(tiny_vlm, [SHORT])
    )
    request = Example(prompt=prompts[0], target="no")
    assert shown_in_full(editor.apply(edited, [request]))[0] == prompts[0]


def shown_in_full(vlm: VLM) -> list[str]:
    return [part.split(" yes")[0] for part in context_of(vlm).split("New Fact: ")[1:]]


# A full context


def tokens_of(vlm: NetworkVLM, text: str) -> int:
    return len(vlm.frozen.tokenize([text])[0])


def with_room(vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch, example: Example, room: int):
    """Lets the model take this many tokens of context before an example."""
    now = vlm.frozen.room([example])[0]
    taken = vlm.adapter.max_tokens - now + room
    monkeypatch.setattr(type(vlm.adapter), "max_tokens", taken)


def contexts_asked(vlm: VLM, examples: Sequence[Example]) -> list[str]:
    assert isinstance(vlm, InContextVLM)
    return [example.context for example in vlm._in_context(examples)]


def test_demonstrations_of_the_oldest_edits_leave_a_full_context_first(
    circle: OnCircle, tiny_vlm: NetworkVLM, monkeypatch
):
    editor = fitted(circle, k=3)
    edited = editor.apply(editor.apply(circle, [at(10)]), [at(170)])
    whole = context_of(edited)
    assert shown_in(whole) == ["east", "west", "northeast"]
    facts = "New Fact: 10 question new\nNew Fact: 170 question new\nPrompt: "
    fewest = tokens_of(tiny_vlm, facts)
    seen: list[list[str]] = []
    for room in range(tokens_of(tiny_vlm, whole), fewest - 1, -1):
        with_room(tiny_vlm, monkeypatch, SHORT, room)
        [context] = contexts_asked(edited, [SHORT])
        monkeypatch.undo()
        assert tokens_of(tiny_vlm, context) <= room
        assert context.endswith(facts)
        seen += [shown_in(context)] if not seen or seen[-1] != shown_in(context) else []
    assert seen == [["east", "west", "northeast"], ["east", "west"], ["west"], []]
    with_room(tiny_vlm, monkeypatch, SHORT, fewest - 1)
    with pytest.raises(ModelError, match=f"2 new facts take {fewest} .* room for {fewest - 1} of"):
        edited.predict([SHORT])


def test_new_tokens_need_room_in_place_of_the_answer(tiny_vlm: NetworkVLM):
    examples = [SHORT, replace(SHORT, image=Image.new("RGB", (8, 8)))]
    [plain, seen], answer = tiny_vlm.frozen.room(examples), tokens_of(tiny_vlm, " blue")
    assert tiny_vlm.frozen.room(examples, 7) == [plain + answer - 7, seen + answer - 7]
    full = [replace(SHORT, context="a" * plain), replace(SHORT, context="a" * (plain + 1))]
    tiny_vlm.predict(full[:1])
    with pytest.raises(ModelError, match="makes a sequence of"):
        tiny_vlm.predict(full[1:])


def test_a_row_with_less_room_alone_has_fewer_demonstrations(
    circle: OnCircle, tiny_vlm: NetworkVLM, monkeypatch
):
    edited = fitted(circle, k=3).apply(circle, [at(10)])
    longer = replace(SHORT, target="a small teal triangle on a light background")
    with_room(tiny_vlm, monkeypatch, SHORT, tokens_of(tiny_vlm, context_of(edited)))
    together = contexts_asked(edited, [SHORT, longer])
    assert together == contexts_asked(edited, [SHORT]) + contexts_asked(edited, [longer])
    assert [len(shown_in(context)) for context in together] == [3, 2]


def test_weight_edits_go_under_the_context(tiny_vlm: NetworkVLM):
    edited = IKE(IKEConfig(k=0)).apply(tiny_vlm, [REQUEST])
    site = tiny_vlm.sites("language")[0]
    change = {site: Dense(torch.full(tiny_vlm.shape(site), 0.1))}
    both = edited.with_deltas(change)
    assert context_of(both) == context_of(edited)
    prefixed = [replace(probe, context=context_of(edited)) for probe in PROBES]
    assert same(both.predict(PROBES), tiny_vlm.with_deltas(change).predict(prefixed))
    assert not same(both.predict(PROBES), edited.predict(PROBES))


# Saving and loading


@pytest.mark.parametrize("k", [0, 2])
def test_loaded_editor_gives_the_same_context(circle: OnCircle, tmp_path: Path, k: int):
    editor = fitted(circle, k=k)
    editor.save(tmp_path / "ike")
    loaded = IKE.load(tmp_path / "ike")
    assert loaded.config == editor.config
    requests = [at(1), at(121), at(299)]
    for way in ("apply", "apply_each"):
        found, wanted = (getattr(each, way)(circle, requests) for each in (loaded, editor))
        assert found.context == wanted.context


def test_editor_without_demonstrations_is_saved_unfitted(tiny_vlm: NetworkVLM, tmp_path: Path):
    editor = IKE(IKEConfig(k=0))
    editor.save(tmp_path / "ike")
    loaded = IKE.load(tmp_path / "ike")
    assert context_of(loaded.apply(tiny_vlm, [REQUEST])) == context_of(
        editor.apply(tiny_vlm, [REQUEST])
    )
