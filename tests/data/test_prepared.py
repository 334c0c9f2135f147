"""The prepare command and the read side: what is checked, what is kept, what is refused."""

import concurrent.futures
import importlib.util
import json
import multiprocessing
import pickle

import numpy as np
import pytest

from tests import ROOT
from tests import official_files as official
from unit_jax.data import integrity, prepare, prepared, text, writer
from unit_jax.data.prepared import PreparedData

QUIET = official.settings()
TOOL = ROOT / "tools" / "prepare_data.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return official.write_world(tmp_path_factory.mktemp("official"))


@pytest.fixture
def data_dir(source, tmp_path):
    """A folder of its own with two tasks that share images, and one without images."""
    prepare.prepare(source, tmp_path / "data", ["coco", "vqa2", "qnli"], QUIET)
    return tmp_path / "data"


def message(call, *arguments, **keywords) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **keywords)
    return str(error.value)


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- Reading ------------------------------------------------------------------------------------


def test_index_arrays_agree_with_the_records(data_dir):
    data = PreparedData(data_dir, ["coco", "vqa2"])
    for task in data.tasks:
        for name in data.splits(task):
            split = data.split(task, name)
            for row in range(len(split)):
                record = split[row]
                assert record["image_row"] == split.image_row[row]
                assert (record["width"], record["height"]) == (split.width[row], split.height[row])
                if task == "coco":
                    x, y, w, h = record["objects"]["boxes_xywh"].T
                    clipped = np.stack(
                        [
                            np.minimum(x + w, record["width"]) - np.maximum(x, 0),
                            np.minimum(y + h, record["height"]) - np.maximum(y, 0),
                        ]
                    )
                    kept = (clipped > 0).all(0) & ~record["objects"]["iscrowd"]
                    assert split.num_objects[row] == kept.sum()


def test_lengths_are_those_of_the_texts(data_dir):
    data = PreparedData(data_dir, ["qnli", "vqa2"])
    tokenizer = text.Tokenizer(data.vocabulary_path)
    for name in data.splits("qnli"):
        split = data.split("qnli", name)
        for row in range(len(split)):
            first, second = split[row]["text"], split[row]["text_b"]
            ((ids, _),) = tokenizer.encode([first], [second], 512)
            assert split.num_tokens[row] == len(ids)
    assert data.split("vqa2", "train").num_tokens is None  # all padded to the task's length


def test_lengths_counted_with_another_vocabulary_are_a_fault(data_dir, source, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("".join(f"{token}\n" for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a")))
    changed = prepare.Settings(
        vocabulary=str(other), overwrite=True, progress=False, allow_partial=True
    )
    prepare.prepare(source, data_dir, ["vqa2"], changed)
    fault = message(PreparedData, data_dir, ["vqa2", "qnli"])
    assert "qnli: its lengths were counted with another vocabulary" in fault
    assert "--datasets qnli --overwrite" in fault and "vqa2:" not in fault


def test_a_split_is_opened_anew_where_it_is_unpickled(data_dir):
    split = PreparedData(data_dir, ["vqa2"]).split("vqa2", "train")
    before = [split[row] for row in range(len(split))]
    assert len(pickle.dumps(split)) < 5000  # paths and the index, no open files
    copy = pickle.loads(pickle.dumps(split))
    assert [copy[row] for row in range(len(copy))] == before
    assert copy.image(0) == split.image(0)


def test_reading_in_another_process(data_dir):
    split = PreparedData(data_dir, ["coco"]).split("coco", "train")
    expected = split.image(1)  # so that the files are open here
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(split.image, 1).result() == expected


def test_reading_from_many_threads(data_dir):
    data = PreparedData(data_dir, ["coco"])
    truth = data.split("coco", "train")
    expected = [truth.image(row) for row in range(len(truth))]
    fresh = pickle.loads(pickle.dumps(truth))
    rows = [row % len(truth) for row in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.image, rows)) == [expected[row] for row in rows]


def test_rows_outside_a_split(data_dir):
    split = PreparedData(data_dir, ["qnli"]).split("qnli", "train")
    for row in (-1, len(split)):
        with pytest.raises(IndexError, match=f"row {row} of .*qnli"):
            split[row]


def test_unknown_names(data_dir):
    data = PreparedData(data_dir, ["qnli"])
    assert "qnli has no split 'dev'; it has train, val, test" in message(data.split, "qnli", "dev")
    assert "sst2 is not prepared in" in message(data.num_labels, "sst2")
    assert "qnli has no images" in message(data.split("qnli", "val").image, 0)


# ---- What does not fit --------------------------------------------------------------------------


def test_all_missing_data_sets_at_once_with_their_commands(data_dir, tmp_path):
    told = message(PreparedData, data_dir, ["coco", "sst2", "snli_ve"])
    assert "coco:" not in told
    for name in ("sst2", "snli_ve"):
        command = f"unit-jax prepare --source DIR --data_dir {data_dir} --datasets {name}"
        assert f"{name}: not prepared; run: {command}" in told
    told = message(PreparedData, tmp_path / "nowhere", prepare.SOURCES)
    assert told.count("not prepared") == 8


def test_another_vocabulary(data_dir, source, tmp_path):
    same, other = tmp_path / "same" / "vocab.txt", tmp_path / "other.txt"
    official.write(same, (source / "vocab.txt").read_bytes())
    official.write(other, "\n".join([*official.VOCABULARY, "dog"]))
    for vocabulary in ("", str(same), str(same.parent)):
        data = PreparedData(data_dir, ["qnli"], vocabulary)
        assert data.vocabulary_path == str(data_dir / "vocab.txt")
    told = message(PreparedData, data_dir, ["qnli"], str(other))
    assert f"the config's data.vocabulary is {other}, which differs" in told
    assert "there is no vocabulary file" in message(
        PreparedData, data_dir, ["qnli"], str(tmp_path / "absent" / "vocab.txt")
    )
    PreparedData(data_dir, ["coco"], str(other))  # no text, no vocabulary
    (data_dir / "vocab.txt").write_text("tampered")
    assert "is not the file that was stored" in message(PreparedData, data_dir, ["qnli"])


def test_a_hub_name_is_not_looked_up_again(source, tmp_path, monkeypatch):
    vocabulary = (source / "vocab.txt").read_bytes()
    monkeypatch.setattr(integrity, "_download_vocabulary", lambda name: vocabulary)
    settings = official.settings(vocabulary="some/hub-name")
    prepare.prepare(source, tmp_path, ["sst2"], settings)

    def refuse(name):
        raise ValueError(f"{name} is not there")

    monkeypatch.setattr(integrity, "_download_vocabulary", refuse)
    PreparedData(tmp_path, ["sst2"], "some/hub-name")
    assert "other-name is not there" in message(PreparedData, tmp_path, ["sst2"], "other-name")


def test_another_answer_list(data_dir):
    (data_dir / "answers_vqa.txt").write_text("<unk>\nno\nyes\n")
    told = message(PreparedData, data_dir, ["vqa2", "qnli"])
    assert "answers_vqa.txt is not the answer list that it was prepared with" in told
    assert "--datasets vqa2 --overwrite" in told
    PreparedData(data_dir, ["coco", "qnli"])


@pytest.mark.parametrize("name", ["coco", "images_coco"])
def test_incomplete_files(data_dir, name):
    (file,) = (data_dir / name).glob("*/*-0000*" if name == "images_coco" else "*/*train*record*")
    file.write_bytes(file.read_bytes()[:-1000])
    told = message(PreparedData, data_dir, ["coco"])
    assert f"{file} has {file.stat().st_size} bytes, prepared were" in told
    file.unlink()
    assert f"{file} is missing" in message(PreparedData, data_dir, ["coco"])


def test_an_unreadable_manifest(data_dir):
    (data_dir / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in message(PreparedData, data_dir, ["coco"])
    (data_dir / "manifest.json").write_text('{"format": 99}')
    assert "has format 99" in message(PreparedData, data_dir, ["coco"])


# ---- Preparing ----------------------------------------------------------------------------------


def test_finished_data_sets_are_left_alone(data_dir, source):
    before = modified(data_dir)
    rows = prepare.prepare(source, data_dir, ["coco", "vqa2", "qnli", "sst2"], QUIET)
    fresh = {row.name for row in rows if row.fresh}
    assert fresh == {"sst2"}
    after = modified(data_dir)
    unchanged = {path for path in before if path.parent != data_dir}
    assert all(before[path] == after[path] for path in unchanged)
    rows = prepare.prepare(source, data_dir, ["qnli"], official.settings(overwrite=True))
    assert [row.fresh for row in rows] == [True]


def test_the_same_bytes_each_time(data_dir, source, tmp_path):
    prepare.prepare(source, tmp_path / "again", ["coco", "vqa2", "qnli"], QUIET)
    for path in data_dir.rglob("*"):
        if path.is_file() and path.suffix != ".npz":
            other = tmp_path / "again" / path.relative_to(data_dir)
            assert path.read_bytes() == other.read_bytes(), path


def test_two_preparations_of_the_same_data_have_the_same_content(data_dir):
    """Whatever their files' bytes are: hosts may prepare each for itself."""
    data = PreparedData(data_dir, ["qnli"])
    before, path = data.content(), data_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["datasets"]["qnli"]["digests"] = {"x": "other"}
    path.write_text(json.dumps(manifest))
    assert PreparedData(data_dir, ["qnli"]).content() == before
    manifest["datasets"]["qnli"]["splits"]["test"]["count"] += 1
    path.write_text(json.dumps(manifest))
    assert PreparedData(data_dir, ["coco"]).content() != before


def test_what_is_broken_is_prepared_again(data_dir, source):
    (file,) = (data_dir / "images_coco").glob("*/*-0000*")
    file.write_bytes(b"")
    rows = prepare.prepare(source, data_dir, ["coco", "qnli"], QUIET)
    assert {row.name: row.fresh for row in rows} == {
        "images_coco": True,
        "coco": True,
        "qnli": False,
    }
    PreparedData(data_dir, ["coco", "vqa2"])  # the same images as before: vqa2 still fits


def test_records_notice_that_their_images_changed(data_dir, source, tmp_path):
    root = official.write_world(tmp_path / "source")
    official.write(root / "coco/train2017/000000000001.jpg", official.jpeg((9, 9)))
    prepare.prepare(root, data_dir, ["coco"], official.settings(overwrite=True))
    told = message(PreparedData, data_dir, ["coco", "vqa2"])
    assert "vqa2: its images (images_coco) were prepared anew from other files" in told
    assert "\n  coco:" not in told
    prepare.prepare(root, data_dir, ["vqa2"], QUIET)
    data = PreparedData(data_dir, ["coco", "vqa2"])
    assert data.split("vqa2", "val").image(0) == data.split("coco", "val").image(0)


def test_an_interrupted_run_leaves_the_old_state(data_dir, source, monkeypatch):
    before = [PreparedData(data_dir, ["qnli"]).split("qnli", "train")[row] for row in (0, 1)]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_check_written", interrupt)
    again = official.settings(overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(source, data_dir, ["qnli", "sst2"], again)
    split = PreparedData(data_dir, ["qnli"]).split("qnli", "train")
    assert [split[0], split[1]] == before
    monkeypatch.undo()
    prepare.prepare(source, data_dir, ["qnli", "sst2"], QUIET)
    PreparedData(data_dir, ["qnli", "sst2"])
    assert not (data_dir / ".preparing").exists()


def test_counts_that_do_not_match_are_noticed(data_dir, source, monkeypatch):
    monkeypatch.setattr(prepared.Records, "stored_count", lambda self: len(self) - 1)
    told = message(prepare.prepare, source, data_dir, ["sst2"], QUIET)
    assert "sst2: train has 1 stored records, 2 were read" in told


def test_all_missing_source_files_before_any_work(tmp_path):
    official.write_snli_ve(tmp_path / "source")
    (tmp_path / "source/snli_ve/snli_ve_dev.jsonl").unlink()
    told = message(prepare.prepare, tmp_path / "source", tmp_path / "data", prepare.SOURCES, QUIET)
    for line in (
        "coco: {}/coco/annotations/instances_train2017.json (from https://cocodataset.org",
        "coco: {}/coco/val2017 (from https://cocodataset.org",
        "coco, vqa2: a folder with images, {}/coco/train2017 or ",
        "snli_ve: {}/snli_ve/snli_ve_dev.jsonl (from ",
        "mnli: {}/glue/MNLI/dev_mismatched.tsv (from ",
    ):
        assert line.format(tmp_path / "source") in told
    assert "snli_ve_train.jsonl" not in told
    assert not (tmp_path / "data").exists()


def test_preparing_with_another_vocabulary(data_dir, source, tmp_path):
    other = tmp_path / "other.txt"
    official.write(other, "\n".join([*official.VOCABULARY, "dog"]))
    settings = official.settings(vocabulary=str(other))
    told = message(prepare.prepare, source, data_dir, ["sst2"], settings)
    assert f"was prepared with the vocabulary vocab.txt, {other} is another" in told
    official.write(other, "cat\n[PAD]\n[CLS]\n")
    told = message(prepare.prepare, source, tmp_path / "fresh", ["sst2"], settings)
    assert "lacks [UNK], [SEP]" in told


def test_unknown_data_sets(source, tmp_path):
    told = message(prepare.prepare, source, tmp_path, ["imagenet"], QUIET)
    assert "unknown data set 'imagenet'; known: coco, visual_genome" in told
    told = message(prepare.prepare, source, tmp_path, ["no_such_module:Source"], QUIET)
    assert "no_such_module:Source cannot be imported" in told


def test_a_record_source_of_ones_own(source, tmp_path, monkeypatch):
    (tmp_path / "my_source.py").write_text(
        "import numpy as np\n"
        "import tensorflow_datasets as tfds\n"
        "from unit_jax.data.sources import base\n"
        "class Weather(base.RecordSource):\n"
        "    name, kind = 'weather', 'language'\n"
        "    features = {'text_a': tfds.features.Text(), 'label': np.int32}\n"
        "    def required_files(self):\n"
        "        return [self.source / 'weather.txt']\n"
        "    def read(self, store, problems):\n"
        "        lines = base.read_text(self.source / 'weather.txt', problems).split()\n"
        "        rows = [{'text_a': line, 'label': len(line) % 2} for line in lines]\n"
        "        facts = {'num_labels': 2, 'label_names': ['even', 'odd']}\n"
        "        return base.Content({'train': rows, 'val': rows[:1]}, facts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    official.write(tmp_path / "weather.txt", "rain sun\n")
    official.write(tmp_path / "vocab.txt", (source / "vocab.txt").read_bytes())
    prepare.prepare(tmp_path, tmp_path / "data", ["my_source:Weather"], QUIET)
    data = PreparedData(tmp_path / "data", ["weather"])
    assert list(data.split("weather", "train")) == [
        {"id": "0", "text": "rain", "text_b": "", "label": 0},
        {"id": "1", "text": "sun", "text_b": "", "label": 1},
    ]
    assert data.label_names("weather") == ["even", "odd"]


# ---- The command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("prepare_data", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_command_prints_a_table(command, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    arguments = [
        "--source",
        str(source),
        "--data_dir",
        str(tmp_path),
        "--datasets",
        "coco, vqa2",
        "--allow_partial",
    ]
    assert command(arguments) == 0
    shown = capsys.readouterr()
    lines = {line.split()[1]: line for line in shown.out.splitlines() if line.startswith("│")}
    assert set(lines) == {"images_coco", "coco", "vqa2"}
    assert "train 4, val 2" in lines["coco"] and "1 x empty box" in lines["coco"]
    assert "train 4, val 2" in lines["vqa2"] and " 4 " in lines["vqa2"]
    assert "6/6" in shown.err  # the progress bar of the image store
    assert command(arguments) == 0
    assert capsys.readouterr().out.count("finished before") == 3
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["datasets"]["coco"]["splits"]["train"] == {
        "count": 4,
        "labelled": True,
        "max_objects": 2,
    }


def test_the_command_reports_an_error_in_a_sentence(command, tmp_path, capsys):
    assert command(["--source", str(tmp_path), "--data_dir", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.startswith("error: files are missing; put them there")


def test_data_in_a_bucket_must_be_mounted():
    with pytest.raises(ValueError, match=r"gs://b/d: .*gcsfuse .*data_dir=/mnt/BUCKET/DATA"):
        PreparedData("gs://b/d", ["coco"])
