"""Asks the Hugging Face hub once whether a repository is there, before anything is fetched.

Its own client tries again for half a minute, and does not say that a folder of the name is missing.
"""

from __future__ import annotations

from mmedit.errors import ModelError, shortened

SECONDS_TO_ANSWER = 10
"""Time that the hub has to answer before a name on it is refused, in seconds."""


def require_on_hub(name: str, file: str, kind: str) -> None:
    """Raise ModelError, within seconds, if a hub id is neither in the cache nor can be fetched.

    `file` is one that every repository of this `kind` has. Costs one request, and none if the file
    is in the cache.
    """
    from httpx2 import HTTPError
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session

    if isinstance(try_to_load_from_cache(name, file), str):
        return
    found = f"there is no folder {name} here, and no {kind} of that name in the cache of the hub"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{found}, and HF_HUB_OFFLINE forbids to ask the hub itself")
    try:
        headers = build_hf_headers()
        answer = get_session().head(
            hf_hub_url(name, file), headers=headers, timeout=SECONDS_TO_ANSWER
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
