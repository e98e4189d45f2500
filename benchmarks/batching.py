"""What batches of separate edits save: the whole protocol, one edit at a time against 25 in a pass.

    python benchmarks/batching.py --mend results/embedded-vqa/editors/mend > benchmarks/batching.md

Both run in turn, three times, on the same 50 cases with image features and base outputs already
looked up; the median of the ratios is what counts, as machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from mmedit import load_cases, load_editor, load_vlm
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.protocol import Meter
from mmedit.editors.base import Editor
from mmedit.editors.fitting import Fitting

CASES, BATCH, ROUNDS = 50, 25, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mend", type=Path, required=True, help="a fitted MEND's folder")
    fitted = parser.parse_args().mend
    vlm = load_vlm("embedded")
    cases = load_cases("easyvqa", "test", limit=CASES)
    training = load_cases("easyvqa", "train", limit=500)
    base = BaseOutputs(vlm)

    def seconds(editor: Editor, batch_size: int) -> float:
        begun = time.perf_counter()
        list(Meter(base, name="", batch_size=batch_size).evaluate(editor, cases))
        return time.perf_counter() - begun

    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{machine}, {CASES} edits with all probes\n")
    print("| editor | one at a time, s | 25 in a pass, s | ratio, median of 3 |")
    print("|---|--:|--:|--:|")
    for name in ("ft", "ike", str(fitted)):
        editor = load_editor(name, vlm)
        if editor.needs_fit and not editor.is_fitted:
            editor = editor.fit(vlm, Fitting(training))
        seconds(editor, BATCH)
        pairs = [(seconds(editor, 1), seconds(editor, BATCH)) for _ in range(ROUNDS)]
        one, many = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(first / second for first, second in pairs)
        print(f"| {editor.label} | {one:.2f} | {many:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
