"""Values inside the language model while a batch is asked, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmedit.adapters.base import Adapter
from mmedit.adapters.layers import first_layers, noted
from mmedit.errors import SiteError
from mmedit.vlm.outputs import Observed
from mmedit.vlm.passes import Recorder, by_row


def observed(
    adapter: Adapter,
    run: Callable[[], Any],
    recorder: Recorder,
    *,
    after: Sequence[int],
    rows: int,
) -> Observed:
    """Return what the recorder's sites take and give in the forward that `run` begins, and the
    hidden states after so many layers. Layers after the last one that is asked for do not run.
    """
    last = max([*after, *(adapter.layer_of(site) + 1 for site in recorder.sites)])
    ends = last == len(adapter.layers) + 1  # the head comes behind the last layer
    with noted(adapter.layers, [k for k in after if k < last]) as states:
        if ends:
            run()
        else:
            states[last] = first_layers(adapter.layers, last, run)
    return Observed(
        x={site: by_row(recorder.inputs[site], rows) for site in recorder.sites},
        y={site: by_row(recorder.outputs[site], rows) for site in recorder.sites},
        states={k: states[k] for k in after},
    )


def require_layers(adapter: Adapter, sites: Sequence[str], after: Sequence[int]) -> None:
    """Raise SiteError unless all sites are in the language model, and it has so many layers."""
    if not sites and not after:
        raise SiteError("nothing to observe was named; name sites, or layers with after=[k]")
    for site in sites:
        if adapter.stage(site) != "language":
            raise SiteError(
                f"{site} is not in the language model; expected one of its Linear weights"
            )
    most = len(adapter.layers)
    if not most:
        raise SiteError("the decoder layers of this model cannot be told apart")
    for k in after:
        if not 1 <= k <= most:
            raise SiteError(f"the state after {k} layers was asked for; this model has {most}")
