"""The works of every method that `floor.py` measures, and the bare work of their floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bare import DenseSteps, Generation, LanguageModel, Rows, Tower
from bare_editors import KENetwork, MendNetwork, OwnNetwork, SeracAnswers, SeracScope
from checkouts import fresh
from learners import learner_of, outer_step, prepared
from measuring import Work
from subjects import Subject

from mmedit import EditCase, Example, load_editor
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.batches import Question
from mmedit.bench.protocol import Meter
from mmedit.editors.base import Editor
from mmedit.editors.fitting import Fitting
from mmedit.editors.learned import LearnedEditor
from mmedit.progress import silent
from mmedit.vlm.network import NetworkVLM

METHODS = ("ft", "ft-l", "ike", "ke", "mend", "serac")
WARM, COLD, FIT, APPLY = WORKS = ("evaluate, warm", "evaluate, cold", "fit", "apply")
DEMONSTRATIONS = 3
"""IKE's, on all VLMs: with 32 the context would be nearly all of the work."""

Pieces = Mapping[str, float]
"""How often a piece of bare work is needed, by its name."""


@dataclass(frozen=True)
class Floor:
    """The pieces of bare work that a work cannot avoid."""

    without: Pieces
    """Without reuse of layers."""
    reusing: Pieces

    def plus(self, piece: str) -> Floor:
        return Floor({**self.without, piece: 1}, {**self.reusing, piece: 1})


@dataclass(frozen=True)
class Measured:
    """A method's works, and the pieces that their floors are made of."""

    label: str
    works: Mapping[str, Work]
    pieces: Mapping[str, Work]
    floors: Mapping[str, Floor]


@contextmanager
def measured(subject: Subject, method: str) -> Iterator[Measured]:
    """Yield the works of a method. An editor that learns is fitted by one short step. While the
    context lasts, what a training keeps over its steps is kept.
    """
    settings: dict[str, Any] = {"k": DEMONSTRATIONS} if method == "ike" else {}
    editor = load_editor(method, subject.vlm, **settings)
    learns = isinstance(editor, LearnedEditor)
    short = {"training": {"steps": 1, "batch_size": 2, "warmup_steps": 0}} if learns else {}
    unfitted = load_editor(method, subject.vlm, **settings, **short)
    fitted = unfitted.fit(subject.vlm, Fitting(subject.training, progress=silent))
    pieces, floors = PLANS[editor.method](subject, editor, fitted)
    pieces["tower"] = Work(Tower(subject.vlm, subject.examples, subject.clock).forward)
    floors[COLD] = floors[WARM].plus("tower")
    evaluation, application = partial(evaluate, subject, fitted), partial(apply, subject, fitted)
    warm, cold = partial(fresh, subject.vlm), partial(fresh, subject.vlm, features=False)
    works = {
        WARM: Work(evaluation, setup=warm),
        COLD: Work(evaluation, setup=cold),
        FIT: fit(subject, editor),
        APPLY: Work(application, setup=warm),
    }
    there = {work: works[work] for work in WORKS if work in floors}
    with prepared(editor, subject.vlm, subject.training):
        yield Measured(editor.label, there, pieces, floors)


def evaluate(subject: Subject, editor: Editor, vlm: NetworkVLM) -> None:
    meter = Meter(BaseOutputs(vlm), name="", batch_size=len(subject.cases))
    list(meter.evaluate(editor, subject.cases))


def apply(subject: Subject, editor: Editor, vlm: NetworkVLM) -> None:
    editor.apply_each(vlm, subject.requests)


def fit(subject: Subject, editor: Editor) -> Work:
    """Return an outer step on all training cases, or IKE's index of them."""
    if isinstance(editor, LearnedEditor):
        learner = learner_of(editor, subject.vlm, subject.training)
        return Work(outer_step(learner, subject.training))
    fitting = Fitting(subject.training, progress=silent)
    return Work(lambda vlm: editor.fit(vlm, fitting), setup=partial(fresh, subject.vlm))


Plan = tuple[dict[str, Work], dict[str, Floor]]
"""Pieces of bare work, and the floors that are made of them."""


def base_pieces(subject: Subject, layer: int) -> dict[str, Work]:
    """Return the base model on probes and requests, and the layers from one on."""
    others = subject.rows_of(subject.questions, layers=[layer])
    requests = subject.rows(subject.requests, layers=[layer])

    def upper() -> None:
        others.forward(layer)
        requests.forward(layer)

    return {
        "others": Work(others.forward),
        "requests": Work(requests.forward),
        "upper": Work(upper),
    }


def gradient_plan(subject: Subject, editor: Any, fitted: Editor) -> Plan:
    """Plan MEND and KE."""
    layer, site = first_edited(subject.vlm, editor)
    requests = subject.rows(subject.requests, layers=[layer])
    pieces = {
        **base_pieces(subject, layer),
        "capture": Work(lambda: requests.backward(site)),
        "network": Work(own_network(subject.vlm, editor, requests, subject.requests).forward),
        **training_pieces(subject, editor, layer, site),
    }
    make = {"capture": 1, "network": 1}
    if editor.method == "ke":
        pieces["pred"] = Work(generation_of_preds(subject, editor).run)
        make["pred"] = 1
    floors = {
        WARM: Floor({"others": 2, "requests": 1, **make}, {"others": 1, "upper": 1, **make}),
        FIT: Floor(*(dict.fromkeys(names, 1) for names in TRAINING)),
        APPLY: Floor(make, make),
    }
    return pieces, floors


TRAINING = (
    ("train: capture", "train: probes", "train: base", "train: network"),
    ("train: capture, upper", "train: probes, upper", "train: head", "train: network"),
)


def training_pieces(subject: Subject, editor: Any, layer: int, site: str) -> dict[str, Work]:
    trained = subject.trained_on(editor)
    probes = subject.rows_of(trained, layers=[layer])
    local = subject.rows_of([question for question in trained if question.probe.is_locality])
    asked = [case.request for case in subject.training]
    requests, last = subject.rows(asked, layers=[layer]), local.last()
    return {
        "train: capture": Work(lambda: requests.backward(site)),
        "train: capture, upper": Work(lambda: requests.backward(site, layer)),
        "train: probes": Work(lambda: probes.backward(site)),
        "train: probes, upper": Work(lambda: probes.backward(site, layer)),
        "train: base": Work(local.forward),
        "train: head": Work(lambda: local.head(last)),
        "train: network": Work(own_network(subject.vlm, editor, requests, asked).train),
    }


def own_network(
    vlm: NetworkVLM, editor: Any, requests: Rows, examples: Sequence[Example]
) -> OwnNetwork:
    if editor.method == "ke":
        return KENetwork(editor, vlm, examples)
    return MendNetwork(editor, vlm, requests)


def generation_of_preds(subject: Subject, editor: Any) -> Generation:
    """Return the generation of the base model's own answers, until the last one has ended."""
    most = editor.config.max_pred_tokens
    said = subject.vlm.answer(subject.requests, max_new_tokens=most)
    lengths = map(len, subject.vlm.frozen.tokenize([answer.text for answer in said]))
    tokens = most if any(answer.is_cut_off for answer in said) else max(lengths) + 1
    return Generation(subject.vlm, subject.requests, min(tokens, most))


def ft_plan(subject: Subject, editor: Any, fitted: Editor) -> Plan:
    layer, _ = first_edited(subject.vlm, editor)
    requests = subject.rows(subject.requests, layers=[layer])
    dense = DenseSteps(requests, editor.config.sites_of(subject.vlm), subject.vlm)
    pieces = {
        **base_pieces(subject, layer),
        "lower": Work(lambda: requests.lower(layer)),
        "step": Work(lambda: dense.step(0)),
        "step, upper": Work(lambda: dense.step(layer)),
    }
    steps = editor.config.steps
    floors = {
        WARM: Floor(
            {"others": 2, "requests": 2, "step": steps},
            {"others": 1, "requests": 1, "upper": 1, "step, upper": steps},
        ),
        APPLY: Floor({"step": steps}, {"lower": 1, "step, upper": steps}),
    }
    return pieces, floors


def ike_plan(subject: Subject, editor: Any, fitted: Any) -> Plan:
    """Plan IKE, whose representation of a request is a state inside the first layer with a site."""
    layer = LanguageModel(subject.vlm.adapter.network).layer_of(subject.vlm.sites("language")[0])
    contexts = fitted.apply_each(subject.vlm, subject.requests).contexts
    behind = [
        question._replace(example=replace(question.example, context=contexts[question.case].text))
        for question in subject.all_questions
    ]
    in_context = subject.rows_of(behind)
    requests = subject.rows(subject.requests)
    indexed = subject.rows([case.request for case in subject.training])
    pieces = {
        **base_pieces(subject, layer),
        "in context": Work(in_context.forward),
        "whole": Work(lambda: requests.lower(None)),
        "represent": Work(lambda: requests.lower(layer + 1)),
        "index, whole": Work(lambda: indexed.lower(None)),
        "index": Work(lambda: indexed.lower(layer + 1)),
    }
    evaluation = dict.fromkeys(("others", "requests", "in context"), 1)
    floors = {
        WARM: Floor(evaluation, evaluation),
        FIT: Floor({"index, whole": 1}, {"index": 1}),
        APPLY: Floor({"whole": 1}, {"represent": 1}),
    }
    return pieces, floors


def serac_plan(subject: Subject, editor: Any, fitted: Any) -> Plan:
    vlm, questions = subject.vlm, subject.all_questions
    edited = fitted.apply_each(vlm, subject.requests).select([q.case for q in questions])
    network = fitted.network_on(vlm)
    asked = [question.example for question in questions]
    score, _ = edited.memory.nearest(network.scope(asked, vlm.frozen), network.similarity)
    inside = [q for q, here in zip(questions, score > editor.config.threshold, strict=True) if here]
    trained = subject.trained_on(editor)
    base = subject.rows_of(trained)
    last, learnt = base.last(), [case.request for case in subject.training]

    def answers(questions: Sequence[Question], cases: Sequence[EditCase]) -> SeracAnswers:
        told = [(cases[q.case].request, q.example, q.probe.is_locality) for q in questions]
        return SeracAnswers(network, vlm, told, size=subject.size)

    scope = SeracScope(network, vlm, [*subject.requests, *asked])
    train_scope = SeracScope(network, vlm, [*learnt, *(question.example for question in trained)])
    pieces = {
        **base_pieces(subject, 0),
        "scope": Work(scope.forward),
        "keys": Work(SeracScope(network, vlm, subject.requests).forward),
        "answers": Work(answers(inside, subject.cases).forward),
        "train: base": Work(base.forward),
        "train: head": Work(lambda: base.head(last)),
        "train: scope": Work(train_scope.train),
        "train: answers": Work(answers(trained, subject.training).train),
    }
    evaluation = dict.fromkeys(("others", "requests", "scope", "answers"), 1)
    own = {"train: scope": 1, "train: answers": 1}
    floors = {
        WARM: Floor(evaluation, evaluation),
        FIT: Floor({"train: base": 1, **own}, {"train: head": 1, **own}),
        APPLY: Floor({"keys": 1}, {"keys": 1}),
    }
    return pieces, floors


def first_edited(vlm: NetworkVLM, editor: Any) -> tuple[int, str]:
    """Return the first edited layer of the language model, and the first site there."""
    model, sites = LanguageModel(vlm.adapter.network), editor.config.sites_of(vlm)
    layer = min(map(model.layer_of, sites))
    return layer, next(site for site in sites if model.layer_of(site) == layer)


PLANS: dict[str, Callable[[Subject, Any, Any], Plan]] = {
    "ft": ft_plan,
    "ike": ike_plan,
    "ke": gradient_plan,
    "mend": gradient_plan,
    "serac": serac_plan,
}
