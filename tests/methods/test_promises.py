"""What every editor promises. A new editor adds one line to `EDITORS_UNDER_TEST`."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import pytest
import torch
from tiny_sentences import saved_encoder

from mmedit.adapters.weights import weights_hash
from mmedit.bench.protocol import evaluate
from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.base import Editor
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.fitting import Fitting
from mmedit.edits.loading import load_edit
from mmedit.errors import EditError, SiteError
from mmedit.methods import EDITORS
from mmedit.methods.alphaedit import AlphaEdit, AlphaEditConfig
from mmedit.methods.balancedit import BalancEdit, BalancEditConfig
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.grace import GRACE, GRACEConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.methods.ke import KE, KEConfig
from mmedit.methods.liveedit import LiveEdit
from mmedit.methods.liveedit.config import LiveEditConfig
from mmedit.methods.lora import LoRA, LoRAConfig
from mmedit.methods.memit import MEMIT, MEMITConfig
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.methods.more import MORE, MOREConfig
from mmedit.methods.rome import ROME, ROMEConfig
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.methods.tpatcher import TPatcher, TPatcherConfig
from mmedit.methods.ultraedit import UltraEdit, UltraEditConfig
from mmedit.methods.visedit import VisEdit
from mmedit.methods.visedit.config import VisEditConfig
from mmedit.methods.wise import WISE, WISEConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.decoding import RowDecoding, RowsDecoding
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Predictions

Located = TypeVar("Located", bound=LocatedConfig)
LAST = tuple(f"language_model.model.decoder.layers.3.{name}" for name in ("fc1", "fc2"))

EDITORS_UNDER_TEST: dict[str, Callable[[], Editor]] = {
    "ft-m": lambda: FT(FTConfig(sites=LAST, lr=1e-3, steps=5)),
    "ft-l": lambda: FT(FTConfig(sites=LAST, lr=1e-3, steps=5, objective="prompt_last")),
    "ft-bridge": lambda: FT(FTConfig(where="bridge", lr=2e-3, steps=5)),
    "ft-vision": lambda: FT(FTConfig(where="vision", lr=2e-3, steps=5)),
    "lora": lambda: LoRA(LoRAConfig(sites=LAST, rank=4, lr=3e-3, steps=6)),
    "lora-shared": lambda: LoRA(LoRAConfig(sites=LAST, rank=4, lr=3e-3, steps=6, shared=True)),
    "ike": lambda: IKE(IKEConfig(k=2)),
    "ike-minilm": lambda: IKE(IKEConfig(k=2, retrieval="text", sentence_encoder=saved_encoder())),
    "ike-no-demonstrations": lambda: IKE(IKEConfig(k=0)),
    "mend": lambda: MEND(small_mend()),
    "ke": lambda: KE(small_ke()),
    "serac": lambda: SERAC(small_serac(scope="multimodal")),
    "serac-text": lambda: SERAC(small_serac(scope="text")),
    "serac-mscke": lambda: SERAC(small_serac(scope="fused")),
    "rome": lambda: ROME(small_located(ROMEConfig, layers=(3,))),
    "rome-last-prompt": lambda: ROME(
        small_located(ROMEConfig, layers=(2,), position="last_prompt", covariance=False)
    ),
    "memit": lambda: MEMIT(small_located(MEMITConfig, layers=(2, 3), weight=0.1)),
    "alphaedit": lambda: AlphaEdit(
        small_located(AlphaEditConfig, layers=(2, 3), l2=0.1, tokens="all", eta=0.05)
    ),
    "ultraedit": lambda: UltraEdit(UltraEditConfig(sites=LAST, lr=3e-4)),
    "tpatcher": lambda: TPatcher(
        TPatcherConfig(steps=15, memory=500, m_largest=(50, 50), m_weight=0.1)
    ),
    "wise": lambda: WISE(WISEConfig(layer=2, steps=4)),
    "grace": lambda: GRACE(GRACEConfig(layer=2, steps=8)),
    "more": lambda: MORE(MOREConfig(sites=LAST, rank=14, alpha=28, lr=0.1, steps=3)),
    "scopeedit": lambda: MORE(
        MOREConfig(sites=LAST, rank=10, shared_rank=4, alpha=28, steps=3, locality_keys=20)
    ),
    "balancedit": lambda: BalancEdit(BalancEditConfig(layer=2, steps=12)),
    "liveedit": lambda: LiveEdit(small_liveedit()),
    "visedit": lambda: VisEdit(small_visedit()),
    "serac-minilm": lambda: SERAC(small_serac(scope="text", sentence_encoder=saved_encoder())),
}  # fmt: skip

VARIANTS = {
    "ft-l", "ike-minilm", "ike-no-demonstrations", "serac-text", "serac-mscke", "serac-minilm",
    "rome-last-prompt",
}  # fmt: skip
"""They differ from another row in what they optimise, compare or retrieve, and edit as it does."""
one_of_each_method = pytest.mark.parametrize(
    "editor", [name for name in EDITORS_UNDER_TEST if name not in VARIANTS], indirect=True
)
"""For promises about edits as values: how they stack, are saved and are taken out."""

ABOUT_IMAGES = {"liveedit", "visedit"}
"""Methods that refuse a request without image."""


def small_mend() -> MENDConfig:
    training = TrainingConfig(steps=25, batch_size=4, final_lr_share=0.1)
    return MENDConfig(
        sites=LAST, rank=32, lr=3e-4, edit_lr=1e-3, lr_lr=1e-3, c_base=0.1, training=training
    )


def small_ke() -> KEConfig:
    training = TrainingConfig(steps=8, batch_size=4)
    return KEConfig(sites=LAST, lstm_hidden=16, condition=32, hidden=32, training=training)


def small_liveedit() -> LiveEditConfig:
    training = TrainingConfig(steps=12, batch_size=4)
    return LiveEditConfig(layer=2, module=32, prototype=8, lr=2e-3, training=training)


def small_visedit() -> VisEditConfig:
    training = TrainingConfig(steps=12, batch_size=4)
    return VisEditConfig(layer=2, module=32, influence=32, lr=2e-3, training=training)


def small_located(config: type[Located], **settings: Any) -> Located:
    value = {"steps": 6, "clamp": 2.0, "lr": 0.5}
    return config(**{"position": "answer", "contexts": 1, "value": value, **settings})


def small_serac(
    *, scope: Literal["text", "multimodal", "fused"], sentence_encoder: str | None = None
) -> SERACConfig:
    training = TrainingConfig(steps=10, batch_size=4)
    return SERACConfig(
        scope=scope,
        sentence_encoder=sentence_encoder,
        scope_width=32,
        counterfactual_width=32,
        counterfactual_layers=2,
        lr=3e-3,
        training=training,
    )


@pytest.fixture(scope="session")
def train_cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=40))


@pytest.fixture(scope="session")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=6))


@pytest.fixture(scope="session")
def requests_(editor: Editor, cases: list[EditCase]) -> list[Example]:
    """Requests of unequal length; unless the method edits questions about images alone, one of
    them without image.
    """
    about_images = [case.request for case in cases[:3]]
    if editor.method in ABOUT_IMAGES or getattr(editor.config, "where", "language") != "language":
        return about_images
    return [*about_images, Example(prompt="what is the capital of Italy?", target="Santo Domingo")]


@pytest.fixture(scope="session")
def probes(cases: list[EditCase]) -> list[Example]:
    """Other questions, with and without image, of unequal length."""
    kinds = (
        Probe.TEXT_LOCALITY,
        Probe.IMAGE_LOCALITY,
        Probe.TEXT_GENERALITY,
        Probe.IMAGE_GENERALITY,
    )
    return [case.probes[kind][0] for case, kind in zip(cases, kinds, strict=False)]


@pytest.fixture(scope="session", params=EDITORS_UNDER_TEST)
def editor(request: pytest.FixtureRequest, vlm: NetworkVLM, train_cases: list[EditCase]) -> Editor:
    made = EDITORS_UNDER_TEST[request.param]()
    return made.fit(vlm, Fitting(train_cases))


# Edited VLMs are values: what several tests ask is made once for each editor.


@pytest.fixture(scope="session")
def edited(editor: Editor, vlm: NetworkVLM, requests_: list[Example]) -> VLM:
    """The VLM with the first request."""
    return editor.apply(vlm, requests_[:1])


@pytest.fixture(scope="session")
def each(editor: Editor, vlm: NetworkVLM, requests_: list[Example]) -> VLM:
    """The VLM with every request as a separate edit."""
    return editor.apply_each(vlm, requests_)


@pytest.fixture(scope="session")
def alone(editor: Editor, vlm: NetworkVLM, requests_: list[Example], edited: VLM) -> list[VLM]:
    """One VLM for each request, with that one alone: what `each` has to equal."""
    return [edited, *(editor.apply(vlm, [request]) for request in requests_[1:])]


@pytest.fixture(scope="session")
def tuned(vlm: NetworkVLM, requests_: list[Example]) -> VLM:
    """The VLM fine-tuned on the second request."""
    return FT(FTConfig(sites=LAST[:1], lr=1e-3, steps=3)).apply(vlm, requests_[1:2])


@pytest.fixture(scope="session")
def stacked(editor: Editor, tuned: VLM, requests_: list[Example]) -> VLM:
    """The fine-tuned VLM with the first request."""
    return editor.apply(tuned, requests_[:1])


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=2e-4)


def answers(vlm: VLM, examples: list[Example]) -> list[torch.Tensor]:
    """The logits at the answer tokens of every example, asked one at a time."""
    return [(p := vlm.predict([example])).logits[p.is_answer] for example in examples]


def test_every_editor_in_the_table_is_under_test():
    assert {make().method for make in EDITORS_UNDER_TEST.values()} == set(EDITORS)


def test_original_model_answers_bit_for_bit_as_before(editor, vlm, requests_, probes):
    before = vlm.predict(probes).logits
    weights = weights_hash(vlm.adapter.network)
    editor.apply(vlm, requests_[:1])
    editor.apply_each(vlm, requests_)
    assert torch.equal(vlm.predict(probes).logits, before)
    assert weights_hash(vlm.adapter.network) == weights


@one_of_each_method
def test_nothing_is_left_behind_on_the_network(vlm, edited, requests_):
    edited.predict(requests_)
    assert_clean(vlm)


@one_of_each_method
def test_nothing_is_left_behind_after_an_exception(editor, vlm, requests_, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the forward broke off")

    with monkeypatch.context() as patched:
        patched.setattr(type(vlm.adapter.network.language_model.lm_head), "forward", fail)
        with pytest.raises(RuntimeError, match="broke off"):
            editor.apply(vlm, requests_[:1]).predict(requests_)
    assert_clean(vlm)


def assert_clean(vlm: NetworkVLM) -> None:
    for module in vlm.adapter.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert "forward" not in vars(module)
        assert not module.training
    for parameter in vlm.adapter.network.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    gc.collect()


def test_same_seed_gives_the_same_edit(request, vlm, requests_, probes, train_cases):
    make = EDITORS_UNDER_TEST[request.node.callspec.params["editor"]]
    first, second = (
        briefly_trained(make())
        .fit(vlm, Fitting(train_cases))
        .apply(vlm, requests_[:1])
        .predict(probes)
        .logits
        for _ in range(2)
    )
    assert torch.equal(first, second)


def briefly_trained(editor: Editor) -> Editor:
    """The editor with four steps of training, if it has any: they draw weights, cases and noise as
    more of them do.
    """
    training = getattr(editor.config, "training", None)
    if training is None:
        return editor
    brief = training.model_copy(update={"steps": 4})
    return type(editor)(editor.config.model_copy(update={"training": brief}))


@one_of_each_method
def test_edits_compose(editor, edited, requests_, probes):
    asked = [*probes, *requests_[:2]]
    before = edited.predict(asked).logits
    twice = editor.apply(edited, requests_[1:2])
    assert not torch.allclose(twice.predict(asked).logits, before)
    assert torch.equal(edited.predict(asked).logits, before)


@one_of_each_method
def test_an_edit_composes_with_a_fine_tuned_vlm(edited, tuned, stacked, requests_, probes):
    asked = [*probes, *requests_[:2]]
    for one in (edited, tuned):
        assert not torch.allclose(stacked.predict(asked).logits, one.predict(asked).logits)


@one_of_each_method
def test_no_requests_no_change(editor, vlm, probes):
    before = vlm.predict(probes).logits
    assert torch.equal(editor.apply(vlm, []).predict(probes).logits, before)
    assert torch.equal(editor.apply_each(vlm, []).predict(probes).logits, before)


def test_apply_each_equals_the_loop_of_apply(each, alone, requests_):
    together = each.predict(requests_)
    for row, (one, request) in enumerate(zip(alone, requests_, strict=True)):
        expected = one.predict([request])
        close(together.logits[row][together.is_answer[row]], expected.logits[expected.is_answer])


def test_each_edit_answers_every_probe_as_if_it_were_alone(each, alone, probes):
    rows = [edit for edit in range(len(alone)) for _ in probes]
    crossed = each.select(rows).predict([*probes] * len(alone))
    for edit, one in enumerate(alone):
        for row, answer in enumerate(answers(one, probes), start=edit * len(probes)):
            close(crossed.logits[row][crossed.is_answer[row]], answer)


@one_of_each_method
def test_separate_edits_refuse_a_batch_of_another_size(each, requests_):
    with pytest.raises((SiteError, ValueError), match="select"):
        each.predict(requests_[:2])


def test_result_does_not_depend_on_batch_size(editor, vlm, requests_, probes):
    edited = editor.apply(vlm, requests_[:2])
    batch = edited.predict(probes)
    for row, alone in enumerate(answers(edited, probes)):
        close(batch.logits[row][batch.is_answer[row]], alone)


def test_result_does_not_depend_on_padding_side(editor, vlm, requests_, probes):
    left = NetworkVLM(vlm.adapter, padding_side="left")
    right_padded = editor.apply(vlm, requests_).predict(probes)
    left_padded = editor.apply(left, requests_).predict(probes)
    close(left_padded.logits[left_padded.is_text], right_padded.logits[right_padded.is_text])


def test_save_and_load_give_the_same_edit(editor, edited, vlm, requests_, probes, tmp_path):
    editor.save(tmp_path / "editor")
    loaded = type(editor).load(tmp_path / "editor")
    first = edited.predict(probes).logits
    assert torch.equal(loaded.apply(vlm, requests_[:1]).predict(probes).logits, first)


@one_of_each_method
def test_a_saved_stack_of_edits_answers_bit_for_bit_as_before(
    editor, vlm, tuned, requests_, probes, tmp_path
):
    edited = editor.apply(tuned, requests_[:2])
    edited = FT(FTConfig(sites=LAST[:1], lr=1e-3, steps=2)).apply(edited, requests_[2:3])
    edited.save(tmp_path / "edits" / "all")
    loaded = vlm.with_edit(load_edit(tmp_path / "edits" / "all"))
    asked = [*probes, *requests_[:2]]
    assert torch.equal(loaded.predict(asked).logits, edited.predict(asked).logits)
    assert loaded.generate(asked, max_new_tokens=6) == edited.generate(asked, max_new_tokens=6)
    assert [edit.name for edit in loaded.edits] == [edit.name for edit in edited.edits]


@one_of_each_method
def test_an_edit_taken_out_leaves_the_others(vlm, stacked, probes):
    without = stacked.without(stacked.edits[0].name)
    alone = vlm.with_edit(stacked.edits[1])
    assert torch.equal(without.predict(probes).logits, alone.predict(probes).logits)
    base = without.without(without.edits[0].name)
    assert base.edits == ()
    assert torch.equal(base.predict(probes).logits, vlm.predict(probes).logits)


@one_of_each_method
def test_merged_edits_answer_as_before(stacked, probes):
    merged = stacked.merged()
    assert torch.equal(merged.predict(probes).logits, stacked.predict(probes).logits)
    assert sum(edit.change.deltas is not None for edit in merged.edits) <= 1


@one_of_each_method
def test_separate_edits_are_not_saved_as_one(each, tmp_path):
    with pytest.raises(EditError, match="apply_each"):
        each.save(tmp_path / "edit")
    assert not any(tmp_path.iterdir())


def test_generation_is_edited_as_prediction_is(each, alone, requests_):
    said = each.generate(requests_, max_new_tokens=6)
    asked = zip(alone, requests_, strict=True)
    assert said == [one.generate([request], max_new_tokens=6)[0] for one, request in asked]


def test_the_target_of_a_question_changes_nothing_before_it(edited, vlm, requests_, probes):
    """It opens no gate, chooses no edit, and retrieves nothing: not even if it is the edit's."""
    targets = (requests_[0].target, "white", "yes", "a small red circle on the left of a triangle")
    own, same, shorter, longer = map(len, vlm.frozen.tokenize([f" {target}" for target in targets]))
    assert shorter < own == same < longer
    asked = [requests_[0], *probes]
    versions = [[replace(example, target=target) for example in asked] for target in targets]
    first = edited.predict(versions[0])
    said = edited.answer(versions[0], max_new_tokens=6)
    for examples in versions[1:]:
        again = edited.predict(examples)
        for row in range(len(asked)):
            close(until_the_answer(again, row), until_the_answer(first, row))
        assert edited.answer(examples, max_new_tokens=6) == said


def until_the_answer(predictions: Predictions, row: int) -> torch.Tensor:
    """The logits about the prompt and about the first token of the answer."""
    before = predictions.is_answer[row].cumsum(0) <= 1
    return predictions.logits[row][predictions.is_text[row] & before]


@one_of_each_method
def test_the_locality_probes_of_a_case_change_no_edit(editor, vlm, cases):
    exchanged = [
        replace(case, probes=dict(case.probes) | {p: other.probes[p] for p in locality_of(case)})
        for case, other in zip(cases[:2], cases[2:4], strict=True)
    ]
    before, after = (
        [
            record.probes[Probe.RELIABILITY][0].post
            for record in evaluate(vlm, editor, few, batch_size=8)
        ]
        for few in (cases[:2], exchanged)
    )
    for first, second in zip(before, after, strict=True):
        assert second.log_prob == pytest.approx(first.log_prob, rel=1e-4, abs=2e-4)
        assert second.exact_match == first.exact_match
        assert second.token_accuracy == first.token_accuracy


def locality_of(case: EditCase) -> list[Probe]:
    return [probe for probe in case.probes if probe.is_locality]


def test_a_decision_is_kept_while_the_answer_is_generated(edited, vlm, requests_, probes):
    """Each generated token is the likeliest one after those before it, as one forward over the
    whole answer predicts it. An edit that decides anew at some token gives others.
    """
    asked = [requests_[0], *probes]
    said, texts = generated(edited, asked)
    told = [replace(e, target=text or "-") for e, text in zip(asked, texts, strict=True)]
    predictions = edited.predict(told)
    for row, ids in enumerate(said):
        answer = predictions.is_answer[row]
        logits, target = predictions.logits[row][answer], predictions.target[row][answer].tolist()
        for place, token in enumerate(target):
            likeliest = ids[place : place + 1] or list(vlm.frozen.ends)
            assert logits[place, likeliest].max() >= logits[place].max() - 1e-3, (row, place)
            if token not in likeliest:  # from here on the text has other tokens than were generated
                break


def generated(vlm: VLM, examples: list[Example]) -> tuple[list[list[int]], list[str]]:
    """The new tokens of every answer without its end, and its text."""
    said: dict[int, list[int]] = {}

    def hear(row: int, ids: list[int]) -> bool:
        said[row] = list(ids)
        return True

    rows = range(len(examples))
    decoding = RowsDecoding([RowDecoding(on_tokens=partial(hear, row)) for row in rows])
    made = vlm.answer(examples, max_new_tokens=6, decoding=decoding)
    return [said.get(row, []) for row in rows], [answer.text for answer in made]


def test_an_edit_of_the_image_stages_refuses_a_request_without_image(vlm):
    text_only = Example(prompt="what is the capital of Italy?", target="Santo Domingo")
    with pytest.raises(SiteError, match=r"acts on images.*has none"):
        EDITORS_UNDER_TEST["ft-bridge"]().apply(vlm, [text_only])


def test_reliability_of_the_request_rises(vlm, each, requests_):
    images = requests_[:3]
    before, after = (nll(asked, images) for asked in (vlm, each.select(range(3))))
    assert after.mean() < before.mean()


def nll(vlm: VLM, examples: list[Example]) -> torch.Tensor:
    predictions = vlm.predict(examples)
    return answer_nll(predictions.logits, predictions.target, predictions.is_answer)


@one_of_each_method
def test_what_a_case_is_probed_with_changes_no_edit(editor, vlm, cases):
    case, other = cases[:2]
    local = {probe: asked for probe, asked in other.probes.items() if probe.is_locality}
    probed = EditCase(id=case.id, request=case.request, probes=local)
    bare = EditCase(id=case.id, request=case.request)
    [first], [second] = (list(evaluate(vlm, editor, [one], name="x")) for one in (bare, probed))
    assert first.probes[Probe.RELIABILITY] == second.probes[Probe.RELIABILITY]
