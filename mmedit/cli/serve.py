"""Serving a VLM and its edits to OpenAI's clients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cli.console import SetOption, app, err, examples, folder, out, say
from mmedit.cli.edit_folders import OptionalVlmOption, vlm_of
from mmedit.errors import ConfigError, ServeError

if TYPE_CHECKING:
    from mmedit.serve.desk import Desk
    from mmedit.serve.models import Models
    from mmedit.vlm.edit import Edit
    from mmedit.vlm.interface import VLM

EXTRA = ("fastapi", "uvicorn")


@app.command(
    epilog=examples(
        "mmedit serve --edit edits/cat --edit edits/dog",
        "mmedit serve --edit edits/cat --edit edits/dog --stack both=cat+dog",
        "mmedit serve --allow-edits --api-key SECRET --edits-dir edits/served",
    )
)
def serve(
    vlm: OptionalVlmOption = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            "--edit",
            metavar="[NAME=]DIR",
            help="A saved edit or stack, or its hub id (repeatable). It becomes a model by its "
            "own name, or NAME.",
        ),
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            "--stack",
            metavar="NAME=A+B",
            help="A model with several of these edits, in this order (repeatable).",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(metavar="HOST", help="Address to listen at. 0.0.0.0 lets other machines in."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="MMEDIT_API_KEY",
            help="Key that every client must send. Other users of this machine can read the "
            "command line: better set MMEDIT_API_KEY.",
            show_default="none",
            show_envvar=True,
        ),
    ] = None,
    allow_edits: Annotated[
        bool,
        typer.Option("--allow-edits", help="Let clients make and delete edits. Needs --api-key."),
    ] = False,
    edits_dir: Annotated[
        Path,
        typer.Option(
            parser=folder,
            metavar="DIR",
            help="Folder of the edits that clients make (--allow-edits). All in it are served.",
        ),
    ] = Path("edits/served"),
    editor: Annotated[
        list[Path] | None,
        typer.Option(
            parser=folder,
            metavar="DIR",
            help="A fitted editor that clients may use, by the folder's name (repeatable).",
        ),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            parser=folder,
            metavar="DIR",
            help="Folder of images that requests may name by their path in it.",
            show_default="none",
        ),
    ] = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option("--allow-image-urls", help="Fetch images from public addresses of the web."),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most new tokens of one answer.")
    ] = 256,
    max_batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most requests answered together.")
    ] = 16,
    batch_wait: Annotated[
        float,
        typer.Option(
            min=0,
            max=10_000,
            metavar="MS",
            help="Milliseconds that a request waits for others to be answered with.",
        ),
    ] = 5.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most open requests; others get status 429.")
    ] = 128,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds that a request may take.")
    ] = 120.0,
    max_body: Annotated[
        float, typer.Option(min=0.001, metavar="MB", help="Largest body of a request.")
    ] = 16.0,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=50_000_000, metavar="N", help="Most pixels of an image.")
    ] = 16_000_000,
    settings: SetOption = None,
) -> None:
    """Serve a VLM and its edits: every edit is a model name for OpenAI's clients.

    The address is http://HOST:PORT/v1. Ctrl+C or SIGTERM finishes what was asked, and ends.
    """
    _require_extra()
    from mmedit.loopback import NAMES
    from mmedit.serve.app import Service, create_app
    from mmedit.serve.desk import read_edit
    from mmedit.serve.engine import Engine
    from mmedit.serve.limits import MEGABYTE, Limits
    from mmedit.serve.pictures import Pictures
    from mmedit.serve.server import address_of, bound, is_local
    from mmedit.serve.server import serve as run

    if api_key is not None and not re.fullmatch("[!-~]+", api_key):
        raise ConfigError(
            "--api-key is empty, or holds a space or a letter that is not ASCII; a key that can be "
            'sent: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    if allow_edits and api_key is None:
        raise ConfigError(
            "--allow-edits lets clients write to this machine, so it needs a key; set "
            "MMEDIT_API_KEY, or give --api-key"
        )
    if image_root is not None and not image_root.is_dir():
        raise ConfigError(f"--image-root {image_root} is not a folder")
    limits = Limits(
        batch=max_batch,
        wait=batch_wait / 1000,
        waiting=max_waiting,
        new_tokens=max_tokens,
        seconds=timeout,
        body_bytes=round(max_body * MEGABYTE),
        pixels=max_pixels,
    )
    edits = [read_edit(written) for written in edit or ()]
    with bound(host, port) as listening:
        base = _loaded(vlm or vlm_of(edits), settings)
        models = _models(base, edits, stack or ())
        desk = _desk(models, edits_dir, editor or ()) if allow_edits else None
        pictures = Pictures(
            most_pixels=max_pixels,
            most_bytes=limits.body_bytes,
            allow_urls=allow_image_urls,
            root=image_root,
        )
        service = Service(
            engine=Engine(base, limits),
            models=models,
            pictures=pictures,
            limits=limits,
            desk=desk,
            api_key=api_key,
            hosts=(*NAMES, host) if is_local(listening) and api_key is None else (),
        )
        address = address_of(listening)

        def announce() -> None:
            say(f"models: {', '.join(models.names())}")
            if not is_local(listening) and api_key is None:
                say("warning: other machines can ask this server, and no --api-key is set", to=err)
            say(f"serving at {address}/v1 (stop with Ctrl+C)")
            out.file.flush()

        run(create_app(service), listening, limits, announce)
    say("stopped: all that was asked is answered")


def _require_extra() -> None:
    from importlib.util import find_spec

    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise ServeError(
            f"{' and '.join(missing)} cannot be found; install the extra: pip install "
            "'mmedit[serve]'"
        )


def _loaded(vlm: str, settings: Sequence[str] | None) -> VLM:
    from mmedit.cli.fit import load_vlm
    from mmedit.config import load_vlm_file, read_overrides
    from mmedit.config_checks import require_used

    overrides = read_overrides(settings or ())
    require_used(overrides, [], without=("editor", "generation", "dataset", "vlm.batch_size"))
    return load_vlm(vlm, load_vlm_file(vlm, overrides.of("vlm")))


def _models(base: VLM, edits: Sequence[Edit], stacks: Sequence[str]) -> Models:
    from mmedit.serve.desk import add_edit, add_stack, base_model
    from mmedit.serve.models import Models

    models = Models(base_model(base))
    for edit in edits:
        add_edit(models, edit)
    for written in stacks:
        add_stack(models, written)
    return models


def _desk(models: Models, edits_dir: Path, editors: Sequence[Path]) -> Desk:
    from mmedit.config import load_editor
    from mmedit.serve.desk import Desk

    if len({path.name for path in editors}) < len(editors):
        raise ConfigError(
            f"--editor: {', '.join(map(str, editors))} end in the same name, by which clients "
            "name an editor; rename one of the folders"
        )
    fitted = {path.name: load_editor(path, models.base.base) for path in editors}
    desk = Desk(models, edits_dir, fitted)
    for fault in desk.restore():
        say(f"warning: {fault}", to=err)
    return desk
