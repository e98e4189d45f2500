"""Plots of a trace as PNG and SVG: a heat map for each component, and a curve for each group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmedit.report.render.plots import STYLE, saved
from mmedit.trace.captions import title_of
from mmedit.trace.settings import Component
from mmedit.trace.summary import Recovery, Trace

NUMBERED = 12
"""Largest number of layers for which a heat map shows numbers."""
COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "text before": "#8a8a8a",
        "image": "#D55E00",
        "question": "#0072B2",
        "subject": "#56B4E9",
        "text after": "#CC79A7",
        "last prompt token": "#009E73",
    }
)
"""Colours of Okabe and Ito, which colour-blind readers can distinguish."""
MARKERS: Mapping[str, str] = MappingProxyType(dict(zip(COLOURS, "xosD+^", strict=True)))
HEADINGS: Mapping[str, str] = MappingProxyType(
    {"block": "block (layer output)", "mlp": "MLP output", "attention": "attention output"}
)


def write_plots(trace: Trace, folder: Path) -> list[Path]:
    """Write heat-block, heat-mlp, heat-attention and curves, each as .svg and .png."""
    written: list[Path] = []
    with matplotlib.rc_context(dict(STYLE)):
        for component in trace.components:
            written += saved(heat_map(trace, component), folder / f"heat-{component}")
        written += saved(curves(trace), folder / "curves")
    return written


def heat_map(trace: Trace, component: Component = "block") -> Figure:
    """Draw the recovery rates of one component: groups by layers."""
    found = trace.recovery(component)
    rows, layers = found.rate.shape
    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=(max(5, 0.2 * layers + 3), 0.36 * rows + 1.5))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        image = axes.imshow(found.rate, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_yticks(range(rows), found.groups)
        axes.set_xticks(range(0, layers, max(1, layers // 10)))
        axes.set_xlabel("layer" if component == "block" else _windowed(trace, layers))
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xticks(np.arange(-0.5, layers), minor=True)
        axes.set_yticks(np.arange(-0.5, rows), minor=True)
        axes.grid(visible=True, which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        if layers <= NUMBERED:
            _number(axes, found.rate)
        figure.suptitle(f"{HEADINGS[component]}\n{title_of(trace)}", fontsize=9)
        figure.colorbar(image, ax=axes, label="recovery rate", pad=0.02)
    return figure


def curves(trace: Trace) -> Figure:
    """Draw the recovery rate of every group by layer, with its interval; a panel a component."""
    components = trace.components
    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=(3.9 * len(components) + 0.4, 3.6), layout="constrained")
        panels = figure.subplots(1, len(components), sharey=True, squeeze=False)[0]
        for axes, component in zip(panels, components, strict=True):
            _draw(axes, trace.recovery(component))
            axes.set_title(HEADINGS[component], fontsize=10)
            layers = trace.manifest.layers
            axes.set_xlabel("layer" if component == "block" else _windowed(trace, layers))
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("recovery rate")
        panels[0].set_ylim(-1.1, 1.3)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(6, max(2, 2 * len(panels))),
            title=title_of(trace),
        )  # fmt: skip
    return figure


def _draw(axes: Axes, found: Recovery) -> None:
    place = np.arange(found.rate.shape[1])
    every = max(1, len(place) // 10)
    for row, group in enumerate(found.groups):
        colour = COLOURS[group]
        axes.plot(
            place, found.rate[row], color=colour, marker=MARKERS[group], markersize=4,
            markevery=every, linewidth=1.4, label=group,
        )  # fmt: skip
        axes.fill_between(place, found.low[row], found.high[row], color=colour, alpha=0.18, lw=0)


def _windowed(trace: Trace, layers: int) -> str:
    width = trace.manifest.window
    return f"middle of a window of {width} layers" if 1 < width < layers else "layer"


def _number(axes: Axes, rates: NDArray[np.float64]) -> None:
    for (row, layer), rate in np.ndenumerate(rates):
        colour = "white" if abs(rate) > 0.6 else "#1d2126"
        text = f"{round(rate, 2) + 0:.2f}"
        axes.text(layer, row, text, ha="center", va="center", fontsize=8, color=colour)
