"""COCO files as users have them: which pixels and boxes become of them."""

import json
import pathlib

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest

from tests.data.own_files import (
    BOX,
    SIGNS,
    SIZE,
    box,
    check,
    coco,
    decoded,
    fails,
    opened,
    picture,
    pixels,
    prepare,
    signs,
    write,
)

# ---- Ids, boxes and masks ------------------------------------------------------------------------


def test_names_without_a_number(tmp_path):
    for split, seeds in (("train", (1, 2)), ("valid", (3,))):
        names = {s: f"street-{s}_jpg.rf.3f9c{s}.jpg" for s in seeds}
        write(
            tmp_path / split / "_annotations.coco.json",
            coco(names, [box(s, 1 + s % 3) for s in seeds]),
        )
        for seed, name in names.items():
            picture(tmp_path / split / name, seed)
    declared = {
        "signs": {
            "format": "coco",
            "train": "train/_annotations.coco.json",
            "val": "valid/_annotations.coco.json",
        }
    }
    expected = {"train": [(1, [("yield", BOX)]), (2, [("go", BOX)])], "val": [(3, [("stop", BOX)])]}
    check(tmp_path, expected, declared=declared)


@pytest.mark.parametrize(
    "layout", ["train.json", "annotations/{}.json", "annotations/instances_{}.json"]
)
@pytest.mark.parametrize("images", ["", "images/"])
def test_one_name_in_two_splits_is_two_pictures(tmp_path, layout, images):
    layout = layout.replace("train", "{}")
    for split, seed in (("train", 10), ("val", 20)):
        files = {1: "000000000003.jpg", 2: "000000000004.jpg"}
        write(tmp_path / layout.format(split), coco(files, [box(1), box(2, 2)]))
        for number, name in files.items():
            picture(tmp_path / images / split / name, seed + number)
    declared = {"signs": {"format": "coco", **{s: layout.format(s) for s in ("train", "val")}}}
    expected = {
        split: [(seed + 1, [("stop", BOX)]), (seed + 2, [("yield", BOX)])]
        for split, seed in (("train", 10), ("val", 20))
    }
    check(tmp_path, expected, declared=declared)


def test_equal_numbers_in_sub_folders(tmp_path):
    files = {1: "day/frame_00001.jpg", 2: "night/frame_00001.jpg"}
    signs(tmp_path, **{"train.json": coco(files, [box(1), box(2, 2)])})
    for number, name in files.items():
        picture(tmp_path / name, 30 + number)
    check(tmp_path, {"train": [(31, [("stop", BOX)]), (32, [("yield", BOX)])]})


def test_numbers_as_texts_and_polygons(tmp_path):
    square = [4, 5, 24, 5, 24, 15, 4, 15]
    objects = [
        box(1, bbox=["4", "5.0", "20", "10"]),
        box(1, 2, None, segmentation=[[1, 2, 11, 2, 6, 9.5]]),
        box(2, 3, [], segmentation=[square, [30, 30, 40, 30, 40, 44, 30, 44]]),
        box(2, 1, [0, 0, 0, 0], segmentation=square),
    ]
    signs(tmp_path, **{"train.json": coco({1: "a.png", 2: "b.png"}, objects)})
    expected = [
        (1, [("stop", BOX), ("yield", (1, 2, 10, 7.5))]),
        (2, [("go", (4, 5, 36, 39)), ("stop", BOX)]),
    ]
    _, data = check(tmp_path, {"train": expected})
    areas = data.split("signs", "train")[1]["objects"]["areas"]
    np.testing.assert_allclose(areas, [20 * 10 + 10 * 14, 200], rtol=0.02)


@pytest.mark.parametrize("compressed", [True, False])
def test_boxes_from_masks(tmp_path, compressed):
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[7:20, 11:31] = 1
    encoded = pycocotools.mask.encode(np.asfortranarray(mask))
    if compressed:
        counts = encoded["counts"].decode()
    else:
        flat = mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, len(flat)]).tolist()
    segmentation = {"size": list(mask.shape), "counts": counts}
    entry = {"image_id": 1, "category_id": 1, "segmentation": segmentation}
    signs(tmp_path, **{"train.json": coco({1: "a.png", 2: "b.png"}, [entry, box(2)])})
    _, data = check(tmp_path, {"train": [(1, [("stop", (11, 7, 20, 13))]), (2, [("stop", BOX)])]})
    assert data.split("signs", "train")[0]["objects"]["areas"].tolist() == [260]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [48, 64], "counts": "\x7f" * 9},
        {"size": [48, 64], "counts": "PPYoM1Q1"},
        {"size": [48, 64], "counts": [5, 5]},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": "x", "counts": None},
        [["a", "b", "c", "d", "e", "f"]],
        [[1, 2, 3, 4]],
        "polygon",
    ],
)
def test_broken_masks_are_faults(tmp_path, segmentation):
    entry = box(1, bbox=None, segmentation=segmentation)
    train = coco({1: "a.png", 2: "b.png"}, [entry, box(1), box(2), box(2, 3)])
    signs(tmp_path, **{"train.json": train})
    expected = [(1, [("stop", BOX)]), (2, [("stop", BOX), ("go", BOX)])]
    (summary,), _ = check(tmp_path, {"train": expected})
    assert summary.splits["train"]["faults"] == {"bad box": 1}


def test_most_objects_lost_is_an_error(tmp_path):
    train = coco({1: "a.png", 2: "b.png"}, [box(1), box(2, bbox="x"), box(2, bbox=None)])
    signs(tmp_path, **{"train.json": train})
    message = fails(tmp_path)
    assert "train.json: 2 of 3 objects cannot be used (2 x bad box)" in message
    assert "train.json: annotation 1: bbox 'x'" in message


@pytest.mark.parametrize(
    "ids", [("x-1", "y"), ("1", "2"), (1.0, 2.0), (1, "b"), (10**30, -3)], ids=repr
)
def test_ids_are_opaque(tmp_path, ids):
    a, b = ids
    told = str(int(a)) if isinstance(a, float) else a  # VIA: numbers there, texts here
    train = coco({a: "a.png", b: "b.png"}, [box(told), box(b, 2)])
    signs(tmp_path, **{"train.json": train})
    check(tmp_path, {"train": [(1, [("stop", BOX)]), (2, [("yield", BOX)])]})


def test_category_ids_as_texts_are_dense_in_their_order(tmp_path):
    names = {"10": "ten", "9": "nine", "0": "signs"}
    train = coco({1: "a.png", 2: "b.png"}, [box(1, "10"), box(2, 9)], names)
    signs(tmp_path, **{"train.json": train, "val.json": coco({1: "c.png"}, [box(1, 10)], names)})
    (summary,), data = check(
        tmp_path,
        {
            "train": [(1, [("ten", BOX)]), (2, [("nine", BOX)])],
            "val": [(3, [("ten", BOX)])],
        },
    )
    assert data.label_names("signs") == ["signs", "nine", "ten"]
    assert data.num_labels("signs") == 3
    note = "train has no object of 'signs': kept as a class, which nothing teaches"
    assert summary.notes == [note]


def test_no_iscrowd_no_area_no_size(tmp_path):
    train = coco({1: "a.png", 2: "b.png"}, [box(1), box(2, 2)])
    for image in train["images"]:
        image.update(width=-1, height=-1)
    del train["images"][1]["width"]
    signs(tmp_path, **{"train.json": train})
    (summary,), data = check(tmp_path, {"train": [(1, [("stop", BOX)]), (2, [("yield", BOX)])]})
    assert summary.splits["train"] == {"examples": 2, "objects": 2, "images": 2, "faults": {}}
    told = data.split("signs", "train")[0]["objects"]
    assert told["areas"].tolist() == [200] and told["iscrowd"].tolist() == [False]


# ---- Classes -------------------------------------------------------------------------------------


def test_classes_of_another_file_are_matched_by_name(tmp_path):
    """Two exports number their classes as they like."""
    names = {7: "go", 8: "stop", 9: "other"}
    signs(tmp_path, **{"val.json": coco({1: "c.png"}, [box(1, 8), box(1, 7, (1, 1, 5, 5))], names)})
    (summary,), data = check(tmp_path, {"val": [(3, [("stop", BOX), ("go", (1, 1, 5, 5))])]})
    assert data.label_names("signs") == ["stop", "yield", "go"]
    assert summary.notes == ["val lists classes that train does not ('other'): not used"]


def test_one_name_twice_is_one_class(tmp_path):
    names = {0: "helmet", 1: "helmet", 2: "vest"}
    train = coco({1: "a.png", 2: "b.png"}, [box(1, 1), box(2, 2), box(2, 0, (1, 1, 5, 5))], names)
    signs(tmp_path, **{"train.json": train, "val.json": coco({1: "c.png"}, [box(1, 0)], names)})
    (summary,), data = check(
        tmp_path,
        {"train": [(1, [("helmet", BOX)]), (2, [("vest", BOX), ("helmet", (1, 1, 5, 5))])]},
    )
    assert data.label_names("signs") == ["helmet", "vest"]
    assert summary.notes == ["classes 0, 1 are all called 'helmet': taken as one class"]


def test_a_class_of_val_that_train_lacks_is_an_error(tmp_path):
    names = {1: "stop", 2: "yeild"}
    signs(tmp_path, **{"val.json": coco({1: "c.png"}, [box(1, 2)], names)})
    message = fails(tmp_path)
    assert "val.json: image 1 (c.png): class 'yeild' is not among train's, 1 x" in message
    assert "nearest: 'yield'; correct it, or add it to" in message


def test_a_class_that_only_val_has_objects_of_is_said(tmp_path):
    train = coco({1: "a.png", 2: "b.png"}, [box(1), box(2)])
    signs(tmp_path, **{"train.json": train})
    (summary,), _ = check(tmp_path, {"val": [(3, [("go", BOX)])]})
    assert summary.notes == [
        "train has no object of 'yield', 'go': kept as a class, which nothing teaches",
        "val has objects of 'go' (1 x), train none: counted as missed",
    ]


# ---- Names and encodings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "on_disk"),
    [
        ("with space.png", "with space.png"),
        ("улица/знак № 1.png", "улица/знак № 1.png"),
        ("cafe\u0301.png", "café.png"),
        ("100%.png", "100%.png"),
        ("50%25.png", "50%25.png"),
        ("a%20b%2Fc.png", "a b/c.png"),
        ("images\\1\\x.png", "images/1/x.png"),
        ("./x.png", "x.png"),
        ("/data/local-files/?d=set/x.png", "set/x.png"),
        ("/home/you/project/pictures/x.png", "pictures/x.png"),
        ("C:\\Users\\you\\pictures\\x.png", "x.png"),
        ("https://example.org/media/x%20y.png", "x y.png"),
        ("../../upload/1/x.png", "x.png"),
        ("sub/folder/x.png", "x.png"),
    ],
)
def test_file_names(tmp_path, told, on_disk):
    signs(tmp_path, **{"train.json": coco({1: told, 2: "b.png"}, [box(1), box(2)])})
    picture(tmp_path / on_disk, 50)
    check(tmp_path, {"train": [(50, [("stop", BOX)]), (2, [("stop", BOX)])]})


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_byte_order_mark_and_line_ends_of_windows(tmp_path, mark):
    text = json.dumps(coco({1: "a.png", 2: "b.png"}, [box(1), box(2)]), indent=1)
    signs(tmp_path, **{"train.json": mark + text.replace("\n", "\r\n").encode()})
    check(tmp_path, {"train": [(1, [("stop", BOX)]), (2, [("stop", BOX)])]})


def test_two_names_that_end_alike_and_one_file_are_no_guess(tmp_path):
    names = {1: "day/x.png", 2: "night/x.png", 3: "a.png", 4: "b.png", 5: "c.png"}
    signs(tmp_path, **{"train.json": coco(names, [box(i) for i in names])})
    picture(tmp_path / "x.png", 9)
    (summary,), _ = check(tmp_path, {"train": [(s, [("stop", BOX)]) for s in (1, 2, 3)]})
    assert summary.splits["train"]["faults"] == {"missing image": 2}
    assert "train: 2 images are missing ('day/x.png', 'night/x.png')" in summary.notes[-2]


def test_nothing_outside_the_folder_is_read(tmp_path):
    picture(tmp_path / "secret.png", 66)
    inside = tmp_path / "set"
    names = {
        1: "a.png",
        2: "b.png",
        3: "../secret.png",
        4: str(tmp_path / "secret.png"),
        5: "link.png",
        6: "..\\secret.png",
        7: "%2e%2e/secret.png",
        8: "c.png",
        9: "linked/secret.png",
        10: "d.png",
        11: "e.png",
        12: "f.png",
    }
    signs(inside, **{"train.json": coco(names, [box(i) for i in names])})
    for seed, name in enumerate(("d.png", "e.png", "f.png"), start=4):
        picture(inside / name, seed)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "linked").symlink_to(tmp_path)
    expected = [(s, [("stop", BOX)]) for s in (1, 2, 3, 4, 5, 6)]
    (summary,), _ = check(inside, {"train": expected})
    assert summary.splits["train"]["faults"] == {"path outside": 6}


def test_images_elsewhere(tmp_path):
    signs(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).rename(tmp_path / f"x{name}")
    message = fails(tmp_path)
    assert "train.json: 2 images are missing ('a.png', 'b.png'), so that 2 of 2 examples" in message
    assert "config.data.own.signs.images=FOLDER" in message
    for seed, name in enumerate(("a.png", "b.png", "c.png"), start=1):
        picture(tmp_path / "store" / name, seed)
    declared = {"signs": {**SIGNS["signs"], "images": "store"}}
    check(
        tmp_path,
        {"train": [(1, [("stop", BOX)])] + [(2, [("yield", (1, 2, 3, 4)), ("go", BOX)])]},
        declared=declared,
    )


# ---- Images --------------------------------------------------------------------------------------


def turned(path: pathlib.Path, seed: int, orientation: int = 6) -> None:
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    PIL.Image.fromarray(pixels(seed)).save(path, "PNG", exif=exif)


@pytest.mark.parametrize("as_shown", [True, False])
def test_a_turned_picture_is_as_its_annotator_saw_it(tmp_path, as_shown):
    train = coco({1: "a.png", 2: "b.png"}, [box(1), box(2)])
    size = SIZE[::-1] if as_shown else SIZE
    train["images"][0].update(width=size[0], height=size[1])
    signs(tmp_path, **{"train.json": train})
    turned(tmp_path / "a.png", 1)
    prepare(tmp_path, SIGNS)
    split = opened(tmp_path, "signs").split("signs", "train")
    expected = np.rot90(pixels(1), -1) if as_shown else pixels(1)  # 6: by 90 degrees clockwise
    np.testing.assert_array_equal(decoded(split, 0), expected)
    assert (split.width[0], split.height[0]) == size


def test_unusual_pictures(tmp_path):
    names = {i: f"{i}.png" for i in range(1, 8)}
    signs(tmp_path, **{"train.json": coco(names, [box(i) for i in names])})
    clear = np.dstack([pixels(1), np.full(SIZE[::-1], 255, np.uint8)])
    clear[:, :32, 3] = 0
    PIL.Image.fromarray(clear).save(tmp_path / "1.png")
    deep = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / "2.png")
    PIL.Image.fromarray(pixels(3)).save(tmp_path / "3.png", "BMP")
    (tmp_path / "4.png").write_bytes(b"<html>404</html>")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x7f\xff\0\0\x7f\xff\x08\x02\0\0\0"
    (tmp_path / "5.png").write_bytes(header + b"\0" * 64)  # 32767 x 32767
    PIL.Image.fromarray(pixels(6)).save(tmp_path / "6.png", "EPS")  # a program, not a picture
    picture(tmp_path / "7.png", 7)
    (summary,) = prepare(tmp_path, SIGNS)
    faults = summary.splits["train"]["faults"]
    assert faults == {
        "broken image": 3, "transparency": 1, "bit depth": 1, "colour mode": 1,
    }  # fmt: skip
    split = opened(tmp_path, "signs").split("signs", "train")
    assert [split[row]["id"] for row in range(4)] == ["1", "2", "3", "7"]
    white = pixels(1)
    white[:, :32] = 255
    np.testing.assert_array_equal(decoded(split, 0), white)
    np.testing.assert_array_equal(decoded(split, 1)[..., 0], np.round(deep / 257))
    np.testing.assert_array_equal(decoded(split, 2), pixels(3))


def test_the_same_picture_under_two_names_is_stored_once_and_warned_of(tmp_path):
    signs(tmp_path)
    picture(tmp_path / "c.png", 2)
    (summary,), data = check(tmp_path, {"val": [(2, [("go", BOX)])]})
    assert data.split("signs", "val").image_row[0] == data.split("signs", "train").image_row[1]
    warning = next(note for note in summary.notes if note.startswith("WARNING"))
    assert "1 of val's images are in train as well" in warning and "c.png" in warning
    assert "also in train (b.png)" in (tmp_path / "data" / "data_report.md").read_text()


# ---- Boxes ---------------------------------------------------------------------------------------


def test_odd_boxes(tmp_path):
    objects = [
        box(1),
        box(1),  # twice the same
        box(1, 2, (-5, 1, 20, 4)),  # leaves the image
        box(1, 2, (90, 90, 5, 5)),  # outside
        box(1, 2, (1, 1, 0, 2)),  # empty
        box(1, 2, (1, 1, float("nan"), 2)),
        box(1, 9),  # unknown category
        box(77),  # unknown image
        box(2, 3, iscrowd=1),
        *(box(2, 1, (n, n, 3, 3)) for n in range(9)),
    ]
    signs(tmp_path, **{"train.json": coco({1: "a.png", 2: "b.png"}, objects)})
    crowd_and_others = [("go", BOX), *(("stop", (n, n, 3, 3)) for n in range(9))]
    expected = [(1, [("stop", BOX), ("yield", (-5, 1, 20, 4))]), (2, crowd_and_others)]
    (summary,), data = check(tmp_path, {"train": expected})
    assert summary.splits["train"]["faults"] == {
        "duplicate object": 1, "box outside": 1, "empty box": 1, "bad box": 1,
        "unknown category": 1, "unknown image": 1, "box partly outside": 1,
    }  # fmt: skip
    split = data.split("signs", "train")
    assert split[1]["objects"]["iscrowd"].tolist() == [True] + [False] * 9
    assert split.num_objects.tolist() == [2, 9]


# ---- What is no COCO -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": 1, "b": 2}, "only a, b"),
        ([1, 2], "a list of 2 entries"),
        ({"images": [], "annotations": []}, "only images, annotations"),
        ({}, "nothing in it"),
        ("[1, 2", "is no complete JSON file"),
        ("[" * 100_000, "is no complete JSON file"),
        (coco({}, []), "train.json lists no examples"),
    ],
)
def test_no_coco(tmp_path, content, told):
    signs(tmp_path, **{"train.json": content})
    message = fails(tmp_path)
    assert "train.json" in message and told in message


def test_missing_files_are_named_together(tmp_path):
    declared = {**SIGNS, "other": {"format": "yolo", "train": "nowhere"}}
    with pytest.raises(ValueError) as error:
        prepare(tmp_path, declared)
    first, second = str(error.value).splitlines()
    assert "train.json: there is no such file" in first
    assert "nowhere: there is no such folder of images" in second
