"""The Hugging Face hub: one question whether a repository is there, before anything is fetched, and
folders that are fetched and uploaded.

Its own client tries again for half a minute, and does not say that a folder of the name is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmedit.errors import ModelError, shortened
from mmedit.storage import is_hub_id

SECONDS_TO_ANSWER = 10
"""Time that the hub has to answer before a name on it is refused, in seconds."""


def require_on_hub(
    name: str, file: str, kind: str, *, revision: str | None = None, token: str | None = None
) -> None:
    """Raise ModelError, within seconds, if a hub id is neither in the cache nor can be fetched.

    `file` is one that every repository of this `kind` has. Costs one request, and none if the file
    is in the cache.
    """
    from httpx2 import HTTPError
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session

    if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
        return
    found = f"there is no folder {name} here, and no {kind} of that name in the cache of the hub"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{found}, and HF_HUB_OFFLINE forbids to ask the hub itself")
    try:
        headers = build_hf_headers(token=token)
        answer = get_session().head(
            hf_hub_url(name, file, revision=revision), headers=headers, timeout=SECONDS_TO_ANSWER
        )
    except (OSError, HTTPError) as error:
        raise ModelError(
            f"{found}, and the hub cannot be reached ({shortened(str(error))}); check the name and "
            "the network"
        ) from None
    if answer.status_code in (401, 403, 404):
        raise ModelError(
            f"{found}; the hub refuses it too (HTTP {answer.status_code}). Check the name; for a "
            "private or gated one log in: hf auth login"
        )


def pull_files(
    name: str, files: Sequence[str], *, kind: str, revision: str | None, token: str | None
) -> Path:
    """Return the folder of a repository of this `kind`, of which only `files` are fetched.

    Raises ModelError.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download

    if not is_hub_id(name):
        raise ModelError(
            f"the folder {shortened(name)} does not exist; expected a folder, or a hub id"
        )
    require_on_hub(name, files[0], kind, revision=revision, token=token)
    try:
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=list(files))
        )
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{name} is not a folder, and cannot be fetched from the hub: {error}"
        ) from error


def push_files(
    path: Path,
    repo_id: str,
    files: Sequence[str],
    *,
    message: str,
    private: bool,
    token: str | None,
) -> str:
    """Upload files of a folder and return the address of the commit. Raises ModelError."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if not is_hub_id(repo_id):
        raise ModelError(f"{repo_id!r} is not a valid hub id; expected owner/name")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=path, allow_patterns=list(files), commit_message=message
        )
    except (HTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{path} cannot be pushed to {repo_id}: {error}. Are you online, and logged in "
            "(hf auth login)?"
        ) from error
    return str(commit)
