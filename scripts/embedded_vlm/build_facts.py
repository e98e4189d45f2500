"""Write mmedit/assets/facts.json: the text-only facts of the embedded VLM, from the PyPI package
countryinfo (MIT).

pip install countryinfo==1.0.1 && python scripts/embedded_vlm/build_facts.py
"""

from __future__ import annotations

import json
from pathlib import Path

import countryinfo

MIN_POPULATION = 300_000
OUT = Path(__file__).parents[2] / "mmedit" / "assets" / "facts.json"


def plain(text: object) -> str:
    """The text if it is short, plain ASCII; else nothing: the tokenizer is English."""
    return text if isinstance(text, str) and text.isascii() and 0 < len(text) <= 28 else ""


def main() -> None:
    facts = []
    for country in countryinfo.all_countries():
        info = country.info()
        name = plain(info.get("name"))
        if not name or (info.get("population") or 0) < MIN_POPULATION:
            continue
        answers = {
            "capital": plain(info.get("capital")),
            "region": plain(info.get("subregion")),
            "people": plain(info.get("demonym")),
        }
        facts += [
            {"relation": relation, "subject": name, "answer": answer}
            for relation, answer in answers.items()
            if answer
        ]
    unique = {(fact["relation"], fact["subject"]): fact for fact in facts}
    OUT.write_text(
        "[\n" + ",\n".join(json.dumps(fact) for fact in unique.values()) + "\n]\n", encoding="utf-8"
    )
    print(f"{len(unique)} facts -> {OUT}")


if __name__ == "__main__":
    main()
