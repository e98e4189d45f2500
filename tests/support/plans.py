"""A plan of a run for tests."""

from __future__ import annotations

from typing import Any

from mmedit.bench.plan import Plan


def make_plan(**given: Any) -> Plan:
    """Return a plan without generations, of a VLM and a dataset of the test's own, as `given`."""
    usual: dict[str, Any] = {
        "vlm_name": "tiny",
        "dataset": "mine",
        "limit": None,
        "seed": 0,
        "editors": {},
        "batch_size": 2,
        "max_new_tokens": 0,
        "command": "mmedit bench",
    }
    return Plan(**usual | given)
