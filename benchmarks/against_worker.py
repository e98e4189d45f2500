"""The works that `against.py` measures, under the mmedit of whichever checkout PYTHONPATH names.

It reads one request a line from its input, `{"do": work}`, and answers with one line: the processor
seconds that the work took, and what it gave. Only names that both checkouts have are used here;
others are in `checkouts.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import checkouts
import torch
import yaml
from measuring import SUPPORT
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, SUPPORT)

import shapes

from mmedit.cases import EditCase, Example, Probe

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "editor"
SHORT = {"steps": 1, "batch_size": 2, "warmup_steps": 0}
"""Training of the editors that are evaluated: times do not depend on how well they edit."""
ENDS = 5
"""Edits at each end of a sequence whose median is taken."""
PAGE, KILOBYTE = resource.getpagesize(), 1024


class Works:
    """A VLM, its cases, and all works by name. Each returns what it gave, with its seconds."""

    def __init__(self, size: str, cases: Path) -> None:
        self.size = size
        self.network, processor = shapes.build(size)
        self.vlm = checkouts.new_vlm(self.network, processor)
        read = json.loads(cases.read_text(encoding="utf-8"))
        self.cases, self.training, self.sequenced = (list(map(_case, part)) for part in read)
        self.meters: dict[str, Any] = {}
        self.steps: dict[str, Callable[[], None]] = {}
        self.kept = ExitStack()

    def evaluate(self, method: str) -> dict[str, Any]:
        """Evaluate the first editor of a table: image features are known, base outputs are not."""
        vlm = checkouts.fresh(self._warm)
        self.meters[method] = checkouts.meter(vlm, len(self.cases))
        return self._evaluated(method, self.meters[method])

    def evaluate_again(self, method: str) -> dict[str, Any]:
        """Evaluate a further editor: the base outputs are known."""
        if method not in self.meters:
            self.evaluate(method)
        return self._evaluated(method, self.meters[method])

    def evaluate_cold(self, method: str) -> dict[str, Any]:
        """Evaluate the first editor, each image through the tower."""
        vlm = checkouts.fresh(self.vlm, features=False)
        return self._evaluated(method, checkouts.meter(vlm, len(self.cases)))

    def step(self, method: str) -> dict[str, Any]:
        """Do an outer step of training, with what is kept over steps."""
        if method not in self.steps:
            self.steps[method] = self._step(method)
            self.steps[method]()
        return timed(self.steps[method])

    def predict(self, _: str) -> dict[str, Any]:
        vlm = checkouts.fresh(self._warm)
        requests = [case.request for case in self.cases]
        with torch.no_grad():
            return timed(lambda: vlm.predict(requests))

    def bare(self, _: str) -> dict[str, Any]:
        """Ask transformers alone, from ready embeddings."""
        return timed(self._bare_forward)

    def sequence(self, method: str) -> dict[str, Any]:
        """Make one edit after another. Return the cost of the last edits over that of the first,
        and of a question after all edits over one before them.
        """
        editor, start = self._fitted(method), checkouts.fresh(self._warm)
        requests = [case.request for case in self.sequenced]
        start.frozen.image_features(requests)
        editor.apply(start, requests[:1])
        edited, taken = start, []
        for request in requests:
            begun = time.process_time()
            edited = checkouts.merged(editor.apply(edited, [request]))
            taken.append(time.process_time() - begun)
        questions = [case.request for case in self.cases]
        before = [self._ask(checkouts.fresh(self._warm), one) for one in questions]
        after = [self._ask(edited, one) for one in questions]
        return {
            "seconds": sum(taken),
            "edit": median(taken[-ENDS:]) / median(taken[:ENDS]),
            "question": median(after) / median(before),
        }

    def memory(self, method: str) -> dict[str, Any]:
        """Return the megabytes that an outer step needs beside the loaded network, with images not
        seen before, and those of the editor's weights, gradients and Adam's state alone.
        """
        before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        done = timed(self._step(method))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE
        return {**done, "megabytes": (peak - before) / 1e6, "editor": 16 * self.learnt / 1e6}

    @cached_property
    def _warm(self) -> Any:
        self.vlm.frozen.image_features(examples_of(self.cases))
        return self.vlm

    def _config(self, method: str, **changed: Any) -> Any:
        read = yaml.safe_load((CONFIGS / f"{method}.yaml").read_text(encoding="utf-8"))
        settings = {**read["settings"], **read.get("per_vlm", {}).get(self.size, {}), **changed}
        kind = checkouts.editors()[method]
        return kind(kind.config_class(**settings))

    @cached_property
    def _editors(self) -> dict[str, Any]:
        return {}

    def _fitted(self, method: str) -> Any:
        if method not in self._editors:
            short = {"training": SHORT} if method != "ft" else {}
            editor = self._config(method, **short)
            cases = self.training[: SHORT["batch_size"]]
            self._editors[method] = checkouts.fitted(editor, self.vlm, cases)
        return self._editors[method]

    def _evaluated(self, method: str, meter: Any) -> dict[str, Any]:
        editor, found = self._fitted(method), []
        done = timed(lambda: found.extend(checkouts.records(meter, editor, self.cases)))
        return {**done, "scores": scores_of(found)}

    def _step(self, method: str) -> Callable[[], None]:
        editor = self._config(method)
        torch.manual_seed(0)
        network = editor.build(editor.facts(self.vlm))
        self.learnt = sum(parameter.numel() for parameter in network.parameters())
        learner = editor.learner(self.vlm, network, self.training).train()
        optimizer = learner.optimizer()
        self.kept.enter_context(checkouts.prepared(self.vlm, editor, self.training))

        def step() -> None:
            optimizer.zero_grad()
            loss, _ = learner(self.training)
            loss.backward()
            optimizer.step()

        return step

    def _ask(self, vlm: Any, question: Example) -> float:
        with torch.no_grad():
            return timed(lambda: vlm.predict([question]))["seconds"]

    @cached_property
    def _bare_forward(self) -> Callable[[], None]:
        from bare import LanguageModel, Rows

        requests, vlm = [case.request for case in self.cases], self._warm
        adapter, model = vlm.adapter, LanguageModel(self.network)
        inputs = adapter.inputs(requests, vlm.frozen.see(requests), padding_side="right")
        with torch.no_grad():
            embeds = Rows(vlm, [], size=1, layers=()).embedded(requests, inputs)
        before = inputs.is_text[:, 1:]

        @torch.no_grad()
        def run() -> None:
            states = model.decoder(
                inputs_embeds=embeds, attention_mask=inputs.attention_mask, use_cache=False
            ).last_hidden_state
            model.head(states[:, :-1][before])

        return run


def timed(run: Callable[[], object]) -> dict[str, Any]:
    begun = time.process_time()
    run()
    return {"seconds": time.process_time() - begun}


def examples_of(cases: Sequence[EditCase]) -> list[Example]:
    probes = [example for case in cases for part in case.probes.values() for example in part]
    return [case.request for case in cases] + probes


def scores_of(records: Sequence[Any]) -> dict[str, float]:
    """Return every number that was measured on the probes, by its place."""
    found: dict[str, float] = {}
    for record in records:
        _collect(record.model_dump(mode="json")["probes"], record.case_id, found)
    return found


def _collect(value: Any, place: str, found: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _collect(inner, f"{place}/{name}", found)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _collect(inner, f"{place}/{number}", found)
    elif isinstance(value, int | float):
        found[place] = float(value)


def write_cases(file: Path, number: int, edits: int) -> None:
    """Write test cases, training cases and the cases of a sequence, for both checkouts: the dataset
    of a name may differ between them. Images in memory become files beside it.
    """
    from mmedit import load_cases

    wanted = (("test", number), ("train", number), ("test", edits))
    parts = [load_cases("easyvqa", split, limit=limit) for split, limit in wanted]
    told = [[_told(case, file.parent) for case in part] for part in parts]
    file.write_text(json.dumps(told), encoding="utf-8")


def _told(case: EditCase, folder: Path) -> dict[str, Any]:
    def told(example: Example) -> dict[str, str | None]:
        image = example.image
        if image is not None and not isinstance(image, Path):
            image.save(kept := folder / f"{id(image)}.png")
            image = kept
        path = None if image is None else str(image)
        return {"prompt": example.prompt, "target": example.target, "image": path}

    probes = {str(probe): list(map(told, part)) for probe, part in case.probes.items()}
    return {"id": case.id, "request": told(case.request), "probes": probes}


def _case(told: Mapping[str, Any]) -> EditCase:
    def example(prompt: str, target: str, image: str | None) -> Example:
        return Example(prompt=prompt, target=target, image=Path(image) if image else None)

    probes = {Probe(name): tuple(example(**e) for e in p) for name, p in told["probes"].items()}
    return EditCase(id=told["id"], request=example(**told["request"]), probes=probes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="file of the cases")
    parser.add_argument("--size", choices=shapes.SHAPES, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints, prints there
    works = Works(options.size, options.file)
    for line in sys.stdin:
        name, _, method = json.loads(line)["do"].partition(" ")
        print(json.dumps(getattr(works, name)(method)), file=answers, flush=True)


if __name__ == "__main__":
    main()
