"""Make data/samples: a few records of our own in the format of each dataset, with drawn pictures.

    python scripts/make_samples.py [FOLDER]

Everything is seeded: the same Pillow gives the same files. Nothing is taken from a dataset.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

SIDE = 64
COLORS = {
    "red": (208, 44, 36), "blue": (40, 72, 200), "green": (40, 150, 64), "yellow": (232, 200, 40),
    "black": (24, 24, 24), "brown": (132, 84, 40),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
FACTS = (
    ("what is the capital of France", "Paris"),
    ("what is the capital of Italy", "Rome"),
    ("what is the capital of Norway", "Oslo"),
    ("what is the capital of Peru", "Lima"),
)
RECORDS = {"train": 4, "eval": 3}
"""Records of each annotation file."""
PRODUCTS = (("Red-Delicious", "Apple"), ("Granny-Smith", "Apple"), ("Banana", "Banana"))


def draw(path: Path, color: str, shape: str, rng: Random) -> None:
    """Draw one shape on a pale background."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(215, 245) for _ in range(3)))
    size, left, top = rng.randint(20, 32), rng.randint(4, 26), rng.randint(4, 26)
    box, pen = (left, top, left + size, top + size), ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(box, fill=COLORS[color])
    elif shape == "square":
        pen.rectangle(box, fill=COLORS[color])
    else:
        corners = [(left, top + size), (left + size, top + size), (left + size // 2, top)]
        pen.polygon(corners, fill=COLORS[color])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def save(file: Path, records: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


class Scene:
    """A picture, another picture of the same, an unrelated one, and a wrong answer."""

    def __init__(self, rng: Random) -> None:
        self.color, self.wrong, self.far = rng.sample(list(COLORS), 3)
        self.shape, self.other_shape = rng.sample(SHAPES, 2)
        self.fact = rng.choice(FACTS)
        self.rng = rng

    def draw(self, image: Path, rephrase: Path, unrelated: Path) -> None:
        draw(image, self.color, self.shape, self.rng)
        draw(rephrase, self.color, self.shape, self.rng)
        draw(unrelated, self.far, self.other_shape, self.rng)

    def record(self, image: str, rephrase: str, unrelated: str) -> dict[str, Any]:
        """Return a record in E-VQA's keys."""
        return {
            "src": f"What color is the {self.shape}?",
            "pred": self.color,
            "rephrase": f"Which color does the {self.shape} have?",
            "alt": self.wrong,
            "image": image,
            "image_rephrase": rephrase,
            "loc": f"nq question: {self.fact[0]}",
            "loc_ans": self.fact[1],
            "m_loc": unrelated,
            "m_loc_q": "What shape is it?",
            "m_loc_a": self.other_shape,
        }


def make_evqa(root: Path, *, captions: bool = False) -> None:
    """E-VQA, or E-IC if `captions`: the two differ in file names, prompts and answers."""
    rng = Random(2 if captions else 1)
    number = 0
    for split, count in RECORDS.items():
        records = []
        for _ in range(count):
            scene, number = Scene(rng), number + 1
            names = (
                f"val2014/sample_{number:02}.jpg",
                f"val2014_image_rephrase/sample_{number:02}.png",
                f"val2014/other_{number:02}.jpg",
            )
            scene.draw(*(root / "images" / name for name in names))
            record = scene.record(*names)
            if captions:
                record |= {
                    "src": "a photo of",
                    "rephrase": "a picture of",
                    "pred": f"a {scene.color} {scene.shape} on a pale background",
                    "alt": f"a {scene.wrong} {scene.other_shape} on a pale background",
                }
            records.append(record)
        name = f"caption/caption_{split}_edit.json" if captions else f"vqa/vqa_{split}.json"
        save(root / name, records)


def make_vlkeb(root: Path) -> None:
    rng = Random(3)
    number = 0
    for split, count in RECORDS.items():
        records, hops = [], []
        for _ in range(count):
            scene, number = Scene(rng), number + 1
            names = (f"m.{number:03}/a.jpg", f"m.{number:03}/b.jpg", f"m.{number:03}/c.jpg")
            scene.draw(*(root / "VLKEB_images" / name for name in names))
            records.append(scene.record(*names))
            hops.append((f"What is {scene.wrong}?", "a color"))
        save(root / f"{split}.json", records)
        if split == "eval":
            onehop = [
                record
                | {
                    "port_new": [
                        {
                            "port_edit_q": question,
                            "port_edit_a": answer,
                            "port_q": question,
                            "port_a": answer,
                        }
                    ]
                }
                for record, (question, answer) in zip(records, hops, strict=True)
            ]
            multihop = [
                record
                | {
                    "port_new": [
                        {"port_type": "1-hop", "Q&A": {"Question": question, "Answer": answer}}
                    ]
                }
                for record, (question, answer) in zip(records, hops, strict=True)
            ]
            save(root / "eval_edit_onehop.json", onehop)
            save(root / "eval_multihop.json", multihop)


def make_mmke(root: Path) -> None:
    rng = Random(4)
    number = 0
    for kind, level in (
        ("entity", "entity_level"), ("visual", "visual_knowledge"), ("user", "user_specific"),
    ):  # fmt: skip
        for split in RECORDS:
            scene, number = Scene(rng), number + 1
            names = tuple(f"{kind}/{number:02}_{part}.jpg" for part in ("a", "b", "c"))
            scene.draw(*(root / "data_image" / name for name in names))
            hop = f"{kind}/{number:02}_hop.jpg"
            record = scene.record(*names) | {"knowledge_type": level}
            record |= _mmke_questions(scene, visual=kind == "visual")
            question = {"Question": f"What is {scene.wrong}?", "Answer": "a color"}
            record["port_new"] = [{"port_type": "1-hop", "Q&A": question}]
            if kind != "entity":
                draw(root / "data_image" / hop, scene.wrong, scene.shape, rng)
                record["one_hop_img"] = hop
            save(root / f"data_json/{kind}_{split}.json", [record])


def _mmke_questions(scene: Scene, *, visual: bool) -> dict[str, str]:
    about = f"What color has the {scene.shape}?"
    if visual:
        return {
            "rel": about, "rel_ans": scene.wrong, "m_rel": "What color is it?",
            "m_rel_ans": scene.wrong, "image_rephrase_question": "And what color here?",
        }  # fmt: skip
    return {
        "rel_1": about, "rel_ans_1": scene.wrong,
        "rel_2": f"Is the {scene.shape} {scene.color}?", "rel_ans_2": "no",
        "m_rel_1": "What color is it?", "m_rel_ans_1": scene.wrong,
        "m_rel_2": f"Is it {scene.color}?", "m_rel_ans_2": "no",
    }  # fmt: skip


def make_comprehendedit(root: Path) -> None:
    """ComprehendEdit: test records name others of their file, and of the file of right answers."""
    rng = Random(7)
    number = 0
    sources = ("GQA", "TallyQA", "VSR")
    for split, count in (("train", 3), ("test", 3), ("ori_right", 3)):
        records = []
        for pid in range(count):
            scene, number = Scene(rng), number + 1
            source = sources[pid]
            names = (f"{source}/images/{number:02}.jpg", "", f"val2014/other_{number:02}.jpg")
            draw(root / names[0], scene.color, scene.shape, rng)
            question, answer = f"What color is the {scene.shape}?", scene.color
            if source == "VSR":
                question, answer = f"The {scene.shape} is {scene.color}.", "true"
            record = {
                "image": names[0], "question": question, "answer": answer, "source": source,
                "Category": "object attributes", "pid": pid,
            }  # fmt: skip
            if split != "ori_right":
                draw(root / names[2], scene.far, scene.other_shape, rng)
                record |= {
                    "rephrase": f"{question} Look.",
                    "locality_prompt": scene.fact[0],
                    "locality_ground_truth": scene.fact[1],
                    "multimodal_locality_image": names[2],
                    "multimodal_locality_prompt": "What shape is it?",
                    "multimodal_locality_ground_truth": scene.other_shape,
                }
            if split == "test":
                others = [(pid + 1) % count, (pid + 2) % count]
                groups = ("img_topk", "txt_topk", "img_last_topk", "txt_last_topk")
                record |= dict.fromkeys(groups, others)
                record |= {f"ori_rt_{group}": [pid, *others] for group in groups}
            records.append(record)
        save(root / f"ComprehendEdit_{split}.json", records)


def make_fgvedit(root: Path) -> None:
    """FGVEdit: an image of two shapes, one of which is edited."""
    rng = Random(8)
    number = 0
    for split, count in (("train", 4), ("test", 3)):
        records = []
        for _ in range(count):
            scene, number = Scene(rng), number + 1
            name = f"val2014/sample_{number:02}.jpg"
            draw(root / "images" / name, scene.color, scene.shape, rng)
            record = scene.record(name, "", "")
            for key in ("pred", "image_rephrase", "m_loc", "m_loc_q", "m_loc_a"):
                del record[key]
            record |= {
                "fg_gen_q": f"Is the {scene.shape} {scene.wrong}?", "fg_gen_a": "yes",
                "fg_loc_q": "What is behind it?", "fg_loc_a": "nothing",
            }  # fmt: skip
            records.append(record)
        save(root / f"{split}_data.json", records)


def make_cckeb(root: Path) -> None:
    """CCKEB: the edit of an image, and of a fact about what it then shows."""
    rng = Random(9)
    number = 0
    for split, count in (("train", 3), ("eval", 2)):
        records = []
        for place in range(count):
            scene, number = Scene(rng), number + 1
            names = tuple(f"m.{number:03}/google_{part}.jpg" for part in (1, 2, 3))
            scene.draw(*(root / "CCKEB_images" / "mmkb_images" / name for name in names))
            named = f"Studio {number}"
            question = {"Question": "Where is the owner of it?", "Answer": "Paris"}
            record = scene.record(*names) | {
                "src": "Who owns it?", "rephrase": "Who is the owner of it?", "pred": "nobody",
                "alt": named, "port_new": [{"port_type": "comp", "Q&A": question}],
                "textual_edit": {
                    "src": f"Where is {named}?", "rephrase": f"In which city is {named}?",
                    "pred": "Paris", "alt": ["New", "Delhi"] if place == 0 else "Lima",
                    "loc": FACTS[0][0], "loc_ans": FACTS[0][1],
                },
            }  # fmt: skip
            records.append(record)
        save(root / f"CCKEB_{split}.json", records)


def make_adsedit(root: Path) -> None:
    """ADS-Edit, single images: by the name of a file, and of an annotation of CODA-LM."""
    rng = Random(10)
    number = 0
    for split, count in (("train", 3), ("test", 2)):
        records = []
        for place in range(count):
            scene, number = Scene(rng), number + 1
            names = [f"train/{number:02}_a.jpg", f"train/{number:02}_b.jpg"]
            if place == 0:
                names = [f"test/images/{number:03}1.jpg", f"test/images/{number:03}2.jpg"]
            other = f"val2014/other_{number:02}.jpg"
            folder = root / "images"
            scene.draw(folder / names[0], folder / names[1], folder / other)
            written = [f"test_{Path(name).stem}.json" if place == 0 else name for name in names]
            record = scene.record(written[0], written[1], other) | {
                "data_type": "Signboard understanding", "image_type": "single-image",
                "source": "codalm", "original_gr": scene.wrong,
                "rephrase_images_original_gr": scene.wrong,
            }  # fmt: skip
            del record["pred"]
            records.append(record)
        save(root / f"{split}.json", records)


def make_grocery(root: Path) -> None:
    rng = Random(5)
    look = {"Red-Delicious": ("red", "circle"), "Granny-Smith": ("green", "circle"),
            "Banana": ("yellow", "triangle")}  # fmt: skip
    coarse = sorted({kind for _, kind in PRODUCTS})
    rows = []
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (name, kind) in enumerate(PRODUCTS):
        place = f"iconic-images-and-descriptions/{kind}/{name}/{name}"
        draw(root / f"{place}_Iconic.jpg", *look[name], rng)
        text = f"{name.replace('-', ' ')} as a child draws it. It is light.\n"
        (root / f"{place}_Description.txt").write_text(text, encoding="utf-8")
        paths = (f"/{place}_Iconic.jpg", f"/{place}_Description.txt")
        rows.append([name, number, kind, coarse.index(kind), *paths])
        for split, count in (("train", 2), ("val", 1), ("test", 2)):
            for copy in range(count):
                path = f"{split}/{kind}/{name}/{name}_{copy + 1:03}.jpg"
                draw(root / path, *look[name], rng)
                lists[split].append(f"{path}, {number}, {coarse.index(kind)}")
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (root / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "Class Name (str)", "Class ID (int)", "Coarse Class Name (str)",
                "Coarse Class ID (int)", "Iconic Image Path (str)",
                "Product Description Path (str)",
            ]
        )  # fmt: skip
        writer.writerows(rows)


def make_json(root: Path) -> None:
    """Your own file: the second record of each has the needed keys alone."""
    rng = Random(6)
    number = 0
    for split, count in (("train", 4), ("test", 3)):
        records = []
        for place in range(count):
            scene, number = Scene(rng), number + 1
            names = tuple(f"photos/{number:02}_{part}.png" for part in ("a", "b", "c"))
            scene.draw(*(root / name for name in names))
            record = scene.record(*names) | {
                "loc": scene.fact[0],
                "answers": [f"It is {scene.wrong}"],
                "subject": f"the {scene.shape}",
            }
            record["port_new"] = [{"port_q": f"What is {scene.wrong}?", "port_a": "a color"}]
            if place == 1 and split == "test":
                record = {key: record[key] for key in ("src", "alt", "image")}
            records.append(record)
        save(root / f"{split}.json", records)


def make_all(folder: Path) -> None:
    """Write every sample under a folder."""
    make_evqa(folder / "evqa")
    make_evqa(folder / "eic", captions=True)
    make_vlkeb(folder / "vlkeb")
    make_mmke(folder / "mmke")
    make_comprehendedit(folder / "comprehendedit")
    make_fgvedit(folder / "fgvedit")
    make_cckeb(folder / "cckeb")
    make_adsedit(folder / "adsedit")
    make_grocery(folder / "grocery")
    make_json(folder / "json")


if __name__ == "__main__":
    here = Path(__file__).parents[1] / "data" / "samples"
    make_all(Path(sys.argv[1]) if len(sys.argv) > 1 else here)
