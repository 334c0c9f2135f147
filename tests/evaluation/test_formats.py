"""Files of predictions: what is written passes its validator, and every fault is found."""

import json

import pytest
from etils import epath

from unit_jax.evaluation.formats import FORMATS, Expected

BOX = dict(image_id="7", category_id=2, bbox=[1.5, 2.0, 3.0, 4.0], score=0.5)
FOUND = {
    "coco": [[BOX, {**BOX, "score": 0.9, "attr_score": 1.5, "attr_label": 3}], [],
             [{**BOX, "image_id": "12", "bbox": [-1.0, 0, 0, 5]}]],
    "vqa": [[dict(id="7", label="man 's hat")], [dict(id="8", label="2")],
            [dict(id="12", label="yes")]],
    "snli_ve": [[dict(id=name, label="neutral")] for name in ("7", "8", "12")],
    "glue": [[dict(id=name, label="neutral")] for name in ("7", "8", "12")],
    "": [[dict(id=name, age=3)] for name in ("7", "8", "12")],
}  # fmt: skip
LABELS = {"coco": ("", "cat", "dog"), "vqa": ("<unk>", "yes", "2", "man 's hat")}


def expected(name: str) -> Expected:
    return Expected(("7", "8", "12"), LABELS.get(name, ("neutral", "entailment")), 4)


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "file")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_valid_and_read_back(name, path):
    made = FORMATS[name]
    count = made.write(path, FOUND[name])
    assert made.problems(path, expected(name)) == made.problems(path, None) == []
    if name == "glue":
        assert path.read_text() == "index\tprediction\n7\tneutral\n8\tneutral\n12\tneutral\n"
        return
    content = json.loads(path.read_text())
    assert len(content) == count == 3
    if name == "coco":
        assert [(e["image_id"], e["score"]) for e in content] == [(7, 0.9), (7, 0.5), (12, 0.5)]
    if name == "vqa":
        assert content[0] == {"question_id": 7, "answer": "man's hat"}


def test_a_coco_file_keeps_the_best_hundred_of_an_image(path):
    entries = [{**BOX, "score": number / 200} for number in range(150)]
    assert FORMATS["coco"].write(path, [entries]) == 100
    assert min(entry["score"] for entry in json.loads(path.read_text())) == 0.25
    path.write_text(json.dumps([{**BOX, "image_id": 7}] * 101))
    assert "more than 100 entries" in FORMATS["coco"].problems(path, None)[0]


@pytest.mark.parametrize(
    "name, change, told",
    [
        ("coco", lambda c: c[0].update(image_id="7"), "image_id is no whole number"),
        ("coco", lambda c: c[0].update(image_id=9), "no such image"),
        ("coco", lambda c: c[0].update(category_id=0), "no such category"),
        ("coco", lambda c: c[0].update(category_id=2.0), "category_id is no whole number"),
        ("coco", lambda c: c[0].update(bbox=[1, 2, -3, 4]), "width or height is negative"),
        ("coco", lambda c: c[0].update(bbox=[1, 2, 3]), "not four finite"),
        ("coco", lambda c: c[0].update(score=float("nan")), "score is no finite"),
        ("coco", lambda c: c[0].pop("score"), "keys are not"),
        ("coco", lambda c: c[0].update(attr_label=4), "no such attribute"),
        ("coco", lambda c: c[0].pop("attr_score"), "attr_score and attr_label are not"),
        ("coco", lambda c: c.append("text"), "no JSON objects"),
        ("vqa", lambda c: c.pop(), "missing (1 times: 12"),
        ("vqa", lambda c: c.append(c[0]), "more than once"),
        ("vqa", lambda c: c[0].update(question_id="7"), "question_id is no int"),
        ("vqa", lambda c: c[0].update(answer="<unk>"), "<unk> is no answer"),
        ("vqa", lambda c: c[0].update(answer=3), "answer is no text"),
        ("snli_ve", lambda c: c[1].update(label="maybe"), "no such label"),
        ("snli_ve", lambda c: c[1].update(pairID="9"), "no such pairID"),
        ("snli_ve", lambda c: c[1].update(pairID=8), "pairID is no str"),
        ("", lambda c: c[1].update(id="9"), "no such id"),
    ],
)  # fmt: skip
def test_every_fault_of_a_json_file_is_told(name, change, told, path):
    FORMATS[name].write(path, FOUND[name])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert told in " | ".join(FORMATS[name].problems(path, expected(name)))


@pytest.mark.parametrize(
    "text, told",
    [
        ("index\tlabel\n", "first line"),
        ("index\tprediction\n7\tneutral\n8\tneutral\n", "missing (1 times: 12)"),
        ("index\tprediction\n7\tneutral\n8\tneutral\n12\tneutral", "no line end"),
        ("index\tprediction\n8\tneutral\n7\tneutral\n12\tneutral\n", "not in the order"),
        ("index\tprediction\n7\tneutral\n8\t2\n12\tneutral\n", "no such prediction"),
        ("index\tprediction\n7\tneutral\n8 neutral\n12\tneutral\n", "not two columns"),
    ],
)
def test_every_fault_of_a_glue_file_is_told(text, told, path):
    path.write_text(text)
    assert told in " | ".join(FORMATS["glue"].problems(path, expected("glue")))


@pytest.mark.parametrize("text", ["[1, 2", '{"question_id": 7, "answer": "yes"}\n'])
def test_a_file_of_lines_or_half_a_file_is_no_array(text, path):
    assert len(FORMATS["vqa"].problems(path, None)) == 1
    path.write_text(text)
    assert "JSON" in FORMATS["vqa"].problems(path, None)[0]


@pytest.mark.parametrize(
    "task, split, name",
    [
        ("qnli", "test", "QNLI.tsv"), ("mnli", "test", "MNLI-mm.tsv"),
        ("mnli", "test_matched", "MNLI-m.tsv"), ("qqp", "test", "QQP.tsv"),
        ("sst2", "test", "SST-2.tsv"), ("sst2", "val", "sst2-val.tsv"),
    ],
)  # fmt: skip
def test_glue_files_have_the_servers_names(task, split, name):
    assert FORMATS["glue"].file_name(task, split) == name
