"""Records as a run writes them, with given scores."""

from __future__ import annotations

from functools import lru_cache
from math import nan

from mmedit.cases import Probe
from mmedit.records.schema import Generation, Locality, ProbeRecord, Record, Scores

REL, GEN = Probe.RELIABILITY, Probe.TEXT_GENERALITY
LOC, PORT = Probe.IMAGE_LOCALITY, Probe.PORTABILITY


def generation(**scores):
    return Generation(**{"contains": 0.0, "exact": 0.0, "rouge_l": 0.0} | scores)


def asked(tok, em, *, prompt="colour?", image="a.png", locality=None, n_tokens=2, **more):
    pre = Scores(token_accuracy=0.0, exact_match=0.0, log_prob=-9.0, n_tokens=2)
    post = Scores(token_accuracy=tok, exact_match=em, log_prob=-1.0, n_tokens=n_tokens)
    return ProbeRecord(
        prompt=prompt, target="red", image=image, pre=pre, post=post, locality=locality, **more
    )


def kept(top1, exact, **more):
    """A locality probe whose agreement is given, and whose accuracy is something else."""
    locality = Locality(
        top1_answer=top1,
        exact_answer=exact,
        top1_all=0.11,
        top10_ordered_all=0.12,
        top10_set_answer=0.13,
        kl=0.14,
    )
    return asked(0.77, 0.0, locality=locality, **more)


def not_finite(example, *, old=False):
    """Return the example as it is recorded if the edited model gave NaN: without scores. Earlier
    versions wrote accuracies of 0 beside a log-probability of NaN.
    """
    value = 0.0 if old else nan
    post = {"token_accuracy": value, "exact_match": value, "log_prob": nan}
    locality = example.locality
    if locality is not None and not old:
        locality = locality.model_copy(update=dict.fromkeys(vars(locality), nan))
    return example.model_copy(
        update={"post": example.post.model_copy(update=post), "locality": locality}
    )


def record(case_id, probes, *, editor="ft", seconds=1.0, seed=0, memory=0, parameters=None):
    return Record(
        case_id=case_id,
        editor=editor,
        seconds=seconds,
        batch=1,
        peak_memory_bytes=memory,
        extra_parameters=parameters,
        seed=seed,
        probes=probes,
    )


def reliability(editor, scores, **fields):
    """One record per score, every one with an image of its own."""
    return [
        record(str(i), {REL: (asked(s, s, image=f"{i}.png"),)}, editor=editor, **fields)
        for i, s in enumerate(scores)
    ]


def many_records(number):
    """Return so many records of five methods with every probe; images and cases repeat."""
    same, told = lru_cache(kept), lru_cache(asked)
    return [
        record(
            str(i // 5),
            {
                probe: (same(i % 2, i % 3 == 0),)
                if probe.is_locality
                else (told(i % 5 / 4, i % 2),)
                for probe in Probe
            }
            | {REL: (asked(i % 7 / 6, i % 2, image=f"{i // 7}.png"),)},
            editor=f"method {i % 5}",
        )
        for i in range(number)
    ]
