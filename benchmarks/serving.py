"""How much a server gains by answering the requests that wait in one batch.

    python benchmarks/serving.py > benchmarks/serving.md

`mmedit serve` on the embedded VLM answers questions about pictures, in turn to four edits. The same
server is asked by one client, which waits for each answer, and by 16 at once; then so is a server
that answers one request at a time (`--max-batch 1`). The median of the ratios is what counts, as
machines differ and are noisy.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import torch

from mmedit import load_cases, load_editor, load_vlm

EDITS, QUESTIONS, CLIENTS, ROUNDS = 4, 96, 16, 5


def main() -> None:
    cases = load_cases("easyvqa", "test", limit=QUESTIONS)
    bodies = [
        question(f"edit{number % EDITS}", case.request.prompt, Path(str(case.request.image)))
        for number, case in enumerate(cases)
    ]
    with tempfile.TemporaryDirectory() as folder:
        names = make_edits(Path(folder))
        with served(names) as batched, served(names, "--max-batch", "1") as single:
            expected = asked(single, bodies, clients=1)[1]
            times: dict[str, list[float]] = {"batched": [], "single": [], "alone": []}
            for port in (batched, single):
                asked(port, bodies, clients=CLIENTS)  # image features, threads
            for _ in range(ROUNDS):
                for name, port, clients in (
                    ("alone", batched, 1),
                    ("single", single, CLIENTS),
                    ("batched", batched, CLIENTS),
                ):
                    seconds, answers = asked(port, bodies, clients=clients)
                    assert answers == expected, "a batch changed an answer"
                    times[name].append(seconds)
    show(times)


def show(times: dict[str, list[float]]) -> None:
    """Print the table."""
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}; {QUESTIONS} "
        f"questions to {EDITS} edits (FT-M) of the embedded VLM, over HTTP; median of {ROUNDS}. "
        "All answers were equal.\n"
    )
    print("| clients | answered | requests per second | ratio |")
    print("|--:|---|--:|--:|")
    for name, clients, how in (
        ("alone", 1, "one at a time: the client waits for each answer"),
        ("single", CLIENTS, "one at a time: --max-batch 1"),
        ("batched", CLIENTS, "all that wait in one batch, each under its own edit"),
    ):
        rate = QUESTIONS / median(times[name])
        ratios = [one / t for one, t in zip(times["single"], times[name], strict=True)]
        print(f"| {clients} | {how} | {rate:.0f} | {median(ratios):.1f} |")


def make_edits(folder: Path) -> list[str]:
    """Save the edits, and return the arguments that serve them."""
    vlm = load_vlm("embedded")
    editor = load_editor("ft", vlm, steps=5)
    arguments = []
    for number, case in enumerate(load_cases("easyvqa", "test", limit=EDITS)):
        path = folder / f"edit{number}"
        vlm.with_edit(editor.edit(vlm, [case.request])).save(path)
        arguments += ["--edit", str(path)]
    return arguments


@contextmanager
def served(edits: list[str], *options: str) -> Iterator[int]:
    """Run a server, and give its port."""
    command = [sys.executable, "-m", "mmedit", "serve", "--port", "0", *edits, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "serving at" in line)
        yield int(line.split("/v1")[0].rpartition(":")[2])
    finally:
        process.terminate()
        process.communicate()


def question(model: str, prompt: str, image: Path) -> bytes:
    """Return the body of a request."""
    uri = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    content = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": uri}},
    ]
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()


def asked(port: int, bodies: list[bytes], *, clients: int) -> tuple[float, list[str]]:
    """Return the seconds for all answers, and the answers."""

    def ask(body: bytes) -> str:
        connection = HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer["choices"][0]["message"]["content"]

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, bodies))
    return time.perf_counter() - begun, answers


if __name__ == "__main__":
    main()
