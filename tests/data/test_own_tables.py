"""Tables and questions as users have them, splits, vocabularies, and what a changed file does."""

import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.data.own_files import box, coco, decoded, opened, picture, pixels, prepare, write
from unit_jax import own_data
from unit_jax.data.own import vocabulary
from unit_jax.data.text import Tokenizer

REVIEWS = {"reviews": {"format": "table", "train": "r.csv", "text": "review", "label": "stars"}}
ROWS = [(f"soup {n}, and “bread”", "good" if n % 3 else "bad") for n in range(12)]


def csv(rows, header=("review", "stars"), delimiter=",") -> str:
    def quoted(cell):
        return '"' + cell.replace('"', '""') + '"' if delimiter in cell or '"' in cell else cell

    return "\r\n".join(delimiter.join(map(quoted, map(str, row))) for row in (header, *rows))


def told(folder, name="reviews", split=None):
    """(text, text_b, label name) of each record, of one split or of all."""
    data = opened(folder, name)
    names = data.label_names(name)
    splits = [split] if split else data.splits(name)
    return [
        (r["text"], r["text_b"], names[r["label"]])
        for s in splits
        for r in (data.split(name, s)[row] for row in range(len(data.split(name, s))))
    ]


def message(folder, declared) -> str:
    with pytest.raises(ValueError) as error:
        prepare(folder, declared)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- Kinds of files ------------------------------------------------------------------------------


def parquet(path, rows):
    columns = {"review": [text for text, _ in rows], "stars": [label for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", csv(ROWS)),
        ("r.csv", csv(ROWS, delimiter=";")),
        ("r.csv", b"\xef\xbb\xbf" + csv(ROWS).encode()),
        ("r.csv", "sep=;\n" + csv(ROWS, delimiter=";")),
        ("r.csv", csv([(*row, "x") for row in ROWS], ("review", "stars", "note, own"))),
        ("r.csv", csv(ROWS, delimiter="\t").encode("utf-16")),
        ("r.tsv", csv(ROWS, delimiter="\t")),
        ("r.jsonl", "\n".join(json.dumps({"stars": b, "review": a}) for a, b in ROWS)),
        ("r.json", json.dumps([{"stars": b, "review": a} for a, b in ROWS])),
        ("r.parquet", None),
    ],
)
def test_kinds_of_tables(tmp_path, name, content):
    if content is None:
        parquet(tmp_path / name, ROWS)
    else:
        write(tmp_path / name, content)
    (summary,) = prepare(tmp_path, {"reviews": {**REVIEWS["reviews"], "train": name}})
    assert sorted(told(tmp_path)) == sorted((a, "", b) for a, b in ROWS)
    assert opened(tmp_path, "reviews").label_names("reviews") == ["bad", "good"]
    counts = [summary.splits[split]["examples"] for split in ("train", "val")]
    assert counts == [10, 2] and summary.splits["train"]["faults"] == {}


def test_pairs_numbers_ids_and_test_without_labels(tmp_path):
    rows = [(f"a {n}", f"b {n}" if n else "", f"{10 - n}.0", f"id{n // 2}") for n in range(4)]
    header = ("one", "two", "grade", "key")
    write(tmp_path / "train.csv", csv(rows, header))
    write(tmp_path / "val.csv", csv(rows[:2], header))
    write(tmp_path / "test.csv", csv([row[:2] for row in rows], header[:2]))
    declared = {
        "format": "table", "text": "one", "text_b": "two", "label": "grade", "id": "key",
        **{split: f"{split}.csv" for split in ("train", "val", "test")},
    }  # fmt: skip
    assert "test.csv: no column 'key' (config.data.own.reviews.id)" in message(
        tmp_path, {"reviews": declared}
    )
    del declared["id"]
    prepare(tmp_path, {"reviews": declared})
    data = opened(tmp_path, "reviews")
    assert data.label_names("reviews") == ["7", "8", "9", "10"]  # by number, not by letter
    assert told(tmp_path, split="train") == [(a, b, str(int(float(c)))) for a, b, c, _ in rows]
    test = data.split("reviews", "test")
    assert not test.labelled and [test[row]["label"] for row in range(4)] == [-1] * 4
    assert [test[row]["id"] for row in range(4)] == ["1", "2", "3", "4"]


def test_given_labels_and_their_numbers(tmp_path):
    write(tmp_path / "r.csv", csv([(f"t {n}", n % 2) for n in range(10)]))
    declared = {"reviews": {**REVIEWS["reviews"], "labels": ["bad", "good"]}}
    prepare(tmp_path, declared)
    assert sorted(told(tmp_path)) == sorted(
        (f"t {n}", "", ["bad", "good"][n % 2]) for n in range(10)
    )


def test_images_with_and_without_a_text(tmp_path):
    rows = [(f"pics/{n}.png", f"is it {n}?", "yes" if n % 2 else "no") for n in range(6)]
    write(tmp_path / "sub/r.csv", csv(rows, ("file", "what", "answer")))
    for n in range(6):
        picture(tmp_path / "sub/pics" / f"{n}.png", n)
    both = {"format": "table", "train": "sub/r.csv", "image": "file", "label": "answer"}
    prepare(tmp_path, {"both": {**both, "text": "what"}, "alone": both})
    data = opened(tmp_path, "both", "alone")
    for name in ("both", "alone"):
        for split in ("train", "val"):
            found = data.split(name, split)
            for row in range(len(found)):
                n = int(found[row]["id"]) - 1
                np.testing.assert_array_equal(decoded(found, row), pixels(n))
                assert data.label_names(name)[found[row]["label"]] == rows[n][2]
                assert found[row].get("text") == (rows[n][1] if name == "both" else None)


QUESTIONS = {"asked": {"format": "questions", "train": "q.jsonl", "val": "v.jsonl"}}


@pytest.mark.parametrize("kind", ["answer", "answers", "VQA's", "csv"])
def test_questions(tmp_path, kind):
    for n in range(3):
        picture(tmp_path / f"{n}.png", n)
    asked = [
        ("0.png", "what?", ["Red", "red,"]),
        ("1.png", "how many?", ["2"]),
        ("2.png", "?", ["no"]),
    ]
    if kind == "answer":
        asked = [(image, question, answers[:1]) for image, question, answers in asked]
    rows = []
    for image, question, answers in asked:
        row = {"image": image, "question": question, "answers": answers}
        if kind == "answer":
            row["answer"] = row.pop("answers")[0]
        if kind == "VQA's":
            row["answers"] = [{"answer": answer} for answer in answers]
        rows.append(row)
    if kind == "csv":
        header = ("image", "question", "answers")
        write(tmp_path / "q.csv", csv([(i, q, "|".join(a)) for i, q, a in asked], header))
    else:
        write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "v.jsonl", json.dumps({"image": "0.png", "question": "x", "answer": "blue"}))
    declared = {"asked": {**QUESTIONS["asked"], "train": "q.csv" if kind == "csv" else "q.jsonl"}}
    (summary,) = prepare(tmp_path, declared)
    data = opened(tmp_path, "asked")
    assert data.label_names("asked") == ["<unk>", "2", "no", "red"]
    split = data.split("asked", "train")
    for row, (image, question, answers) in enumerate(asked):
        np.testing.assert_array_equal(decoded(split, row), pixels(int(image[0])))
        assert (split[row]["text"], split[row]["answers"]) == (question, answers)
    assert any(
        "val: 1 of 1 questions have no answer of the answer list" in n for n in summary.notes
    )
    assert any(n.startswith("WARNING: 1 of val's images are in train") for n in summary.notes)


# ---- Wrong input ---------------------------------------------------------------------------------


def test_a_column_that_does_not_exist(tmp_path):
    write(tmp_path / "r.csv", csv(ROWS, ("Review ", "star")))
    declared = {"reviews": {**REVIEWS["reviews"], "text": "reviews"}}
    told = message(tmp_path, declared)
    assert "r.csv: no column 'reviews' (config.data.own.reviews.text); nearest: 'Review'" in told
    assert "no column 'stars' (config.data.own.reviews.label); nearest: 'star'" in told


def test_a_label_of_val_that_train_lacks(tmp_path):
    write(tmp_path / "r.csv", csv(ROWS))
    write(tmp_path / "v.csv", csv([*ROWS, ("odd", "god"), ("odd", "god"), ("x", "y")]))
    told = message(tmp_path, {"reviews": {**REVIEWS["reviews"], "val": "v.csv"}})
    assert "v.csv:14: label 'god' is not among train's, 2 x (and 1 more such labels)" in told
    assert "nearest: 'good'; correct it, or add it to" in told


def test_mostly_faulty_rows_are_an_error_and_few_are_counted(tmp_path):
    rows = [*ROWS, ("", "good"), ("x", ""), ("too", "many", "cells")]
    write(tmp_path / "r.csv", csv(rows))
    (summary,) = prepare(tmp_path, REVIEWS)
    assert summary.splits["train"]["faults"] == {"bad row": 1, "empty text": 1, "no label": 1}
    write(tmp_path / "r.csv", csv([*ROWS, *[("x", "")] * 13]))
    told = message(tmp_path, REVIEWS)
    assert "r.csv: 13 of 25 examples cannot be used (13 x no label)" in told
    assert "r.csv:14: column 'stars' is empty" in told
    data = json.loads((tmp_path / "data/manifest.json").read_text())["datasets"]["reviews"]
    assert data["splits"]["train"]["count"] == 10  # what was prepared before stays


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("r.csv", "", "r.csv: the file is empty"),
        ("r.csv", "review,stars\n", "r.csv lists no examples"),
        ("r.xlsx", "PK", "the ending tells the kind of file"),
        ("r.parquet", "PAR1", "is no whole Parquet file"),
        ("r.json", "[1", "is no complete JSON file"),
        ("r.jsonl", "7\n8", "expected JSON lines"),
        ("r.csv", None, "there is no such file"),
    ],
)
def test_no_table(tmp_path, name, content, told):
    if content is not None:
        write(tmp_path / name, content)
    assert told in message(tmp_path, {"reviews": {**REVIEWS["reviews"], "train": name}})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "cocoa"}, "config.data.own.x.format: 'cocoa' is no format; nearest: 'coco'"),
        ({"format": "coco"}, "config.data.own.x.train: missing"),
        (
            {"format": "coco", "train": "a", "vall": "b"},
            "config.data.own.x.vall: unknown key; nearest: 'val'",
        ),
        ({"format": "coco", "train": 7}, "config.data.own.x.train: expected a path, got 7"),
        ({"format": "table", "train": "a", "text": "t"}, "config.data.own.x.label: missing"),
        ({"format": "table", "train": "a", "label": "t"}, "give text, image or both"),
        (
            {"format": "coco", "train": "a", "val": "b", "val_share": 0.1},
            "val and val_share both say",
        ),
        ({"format": "coco", "train": "a", "val_share": 1.5}, "expected a number between 0 and 1"),
        ("signs.json", "config.data.own.x: expected"),
    ],
)
def test_wrong_declarations(tmp_path, options, told):
    (found,) = own_data.problems({"x": options})
    assert told in found


# ---- Splits --------------------------------------------------------------------------------------


def test_a_split_by_a_column(tmp_path):
    words = ["train", "Training", "val", "test", "dev"]
    rows = [(f"t {n}", "ab"[n % 2], words[n % 5]) for n in range(20)]
    write(tmp_path / "r.csv", csv(rows, ("review", "stars", "part")))
    declared = {"reviews": {**REVIEWS["reviews"], "split": "part"}}
    prepare(tmp_path, declared)
    data = opened(tmp_path, "reviews")
    for split, chosen in (
        ("train", words[:2]),
        ("val", [words[2], words[4]]),
        ("test", [words[3]]),
    ):
        expected = [text for text, _, word in rows if word in chosen]
        assert [text for text, _, _ in told(tmp_path, split=split)] == expected
        assert data.split("reviews", split).labelled
    write(tmp_path / "r.csv", csv([("t", "a", "later"), *rows], ("review", "stars", "part")))
    assert "column 'part' (config.data.own.reviews.split) holds 'later'" in message(
        tmp_path, declared
    )


def test_a_share_is_a_function_of_its_seed_and_divides_no_picture(tmp_path):
    rows = [(f"{n // 4}.png", f"q {n}", f"a{n % 3}") for n in range(40)]
    write(tmp_path / "r.csv", csv(rows, ("image", "question", "answer")))
    for n in range(10):
        picture(tmp_path / f"{n}.png", n)

    def drawn(**others):
        (summary,) = prepare(
            tmp_path,
            {"asked": {"format": "questions", "train": "r.csv", "val_share": 0.3, **others}},
        )
        splits = [opened(tmp_path, "asked").split("asked", split) for split in ("train", "val")]
        rows = [{split.image_row[row] for row in range(len(split))} for split in splits]
        assert not rows[0] & rows[1] and len(rows[1]) == 3 and summary.fresh
        return [split[row]["id"] for split in splits[1:] for row in range(len(split))]

    first = drawn()
    assert first != drawn(seed=1)
    assert first == drawn(seed=0)


def test_a_share_leaves_an_example_of_each_class(tmp_path):
    rows = [(f"t {n}", "often") for n in range(8)] + [("once", "rare"), ("u", "two"), ("v", "two")]
    write(tmp_path / "r.csv", csv(rows))
    for seed in range(5):
        prepare(tmp_path, {"reviews": {**REVIEWS["reviews"], "val_share": 0.5, "seed": seed}})
        labels = {label for _, _, label in told(tmp_path, split="train")}
        assert labels == {"often", "rare", "two"}


# ---- Again ---------------------------------------------------------------------------------------


def test_a_changed_file_is_prepared_again_and_only_then(tmp_path):
    train, val = coco({1: "a.png"}, [box(1)]), coco({1: "b.png"}, [box(1)])
    write(tmp_path / "train.json", train)
    write(tmp_path / "val.json", val)
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    declared = {"signs": {"format": "coco", "train": "train.json", "val": "val.json"}}

    def again():
        (summary,) = prepare(tmp_path, declared)
        return summary.fresh and summary.notes[0]

    assert again()
    assert again() is False
    os.utime(tmp_path / "train.json", ns=(1, 1))  # copied anew, say
    assert again() is False
    train["annotations"][0]["bbox"][0] = 9  # of the same length
    write(tmp_path / "train.json", train)
    assert again().endswith("train.json changed")
    split = opened(tmp_path, "signs").split("signs", "train")
    assert split[0]["objects"]["boxes_xywh"][0].tolist() == [9, 5, 20, 10]
    picture(tmp_path / "a.png", 3)
    assert again().endswith("a.png changed")
    split = opened(tmp_path, "signs").split("signs", "train")
    np.testing.assert_array_equal(decoded(split, 0), pixels(3))
    declared["signs"]["images"] = "."
    assert again() == "prepared again: it is declared otherwise than before"
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 images are missing \('a.png'\)"):
        again()
    for name in ("train.json", "val.json", "b.png"):
        (tmp_path / name).unlink()
    assert again() is False  # all taken away: what was made of it is there


def test_a_new_file_in_a_folder_is_noticed(tmp_path):
    write(tmp_path / "data.yaml", "names: [a]")
    for split in ("train", "val"):
        picture(tmp_path / split / "images/x.png", len(split))
        write(tmp_path / split / "labels/x.txt", "0 0.5 0.5 1 1")
    declared = {"signs": {"format": "yolo", "train": "train/images", "val": "val/images"}}
    prepare(tmp_path, declared)
    picture(tmp_path / "train/images/y.png", 9)
    (summary,) = prepare(tmp_path, declared)
    assert summary.splits["train"]["examples"] == 2


# ---- Vocabulary ----------------------------------------------------------------------------------


def test_a_vocabulary_is_made_of_the_training_texts_and_stays(tmp_path):
    write(tmp_path / "r.csv", csv(ROWS))
    (summary,) = prepare(tmp_path, REVIEWS)
    assert any(n.startswith("vocabulary: ") and "word pieces made of" in n for n in summary.notes)
    made = (tmp_path / "data/vocab.txt").read_bytes()
    ids, _ = Tokenizer(tmp_path / "data/vocab.txt").encode(["Soup 3, and “bread”"], None, 99)[0]
    pieces = made.decode().splitlines()
    words = "".join(pieces[i] for i in ids[1:-1]).replace("##", "")
    assert words == "soup3,and“bread”"
    write(tmp_path / "r.csv", csv([("entirely other words", "good"), *ROWS]))
    prepare(tmp_path, REVIEWS)
    assert (tmp_path / "data/vocab.txt").read_bytes() == made


def test_the_same_texts_make_the_same_vocabulary():
    texts = [f"{a}{b} {b}{c}!" for a in "xyzé" for b in "uvw" for c in "rst"]
    (made,) = {vocabulary.build(texts, 40) for _ in range(5)}
    pieces = made.decode().splitlines()
    assert len(pieces) == 40 and len(set(pieces)) == 40
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_a_given_vocabulary(tmp_path):
    write(tmp_path / "r.csv", csv(ROWS))
    tokens = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nsoup\n"
    path = write(tmp_path / "vocab.txt", tokens)
    prepare(tmp_path, REVIEWS, vocabulary=path)
    assert (tmp_path / "data/vocab.txt").read_text() == tokens
    with pytest.raises(ValueError, match="there is no vocabulary file"):
        prepare(tmp_path, REVIEWS, vocabulary=str(tmp_path / "none/vocab.txt"), overwrite=True)
