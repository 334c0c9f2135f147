"""VOC, YOLO and annotation tools' own files: which pixels and boxes become of them."""

import os
import pathlib

import pytest

from tests.data.own_files import (
    BOX,
    SIZE,
    check,
    error_of,
    picture,
    signs,
    write,
)

# ---- The tools' own JSON -------------------------------------------------------------------------

POLYGON = (1, 2, 10, 7.5)


def test_labelme(tmp_path):
    """A folder with a file for each image."""
    triangle = {"label": "go", "points": [[1, 2], [11, 2], [6, 9.5]], "shape_type": "polygon"}
    square = {"label": "stop", "points": [[24, 15], [4, 5]], "shape_type": "rectangle"}
    for split, seed in (("train", 1), ("val", 2)):
        shapes = [square, triangle]
        content = {"shapes": shapes, "imagePath": "..\\images\\x.png", "imageData": None}
        write(tmp_path / split / "labels/x.json", content)
        picture(tmp_path / split / "images/x.png", seed)
        write(tmp_path / split / "labels/y.json", {**content, "imagePath": "../images/y.png"})
        picture(tmp_path / split / "images/y.png", 10 + seed)
    declared = {"signs": {"format": "coco", "train": "train", "val": "val/labels"}}
    objects = [("stop", BOX), ("go", POLYGON)]
    expected = {"train": [(1, objects), (11, objects)], "val": [(2, objects), (12, objects)]}
    check(tmp_path, expected, declared=declared)


def test_via_and_label_studio(tmp_path):
    rect = {"name": "rect", "x": 4, "y": 5, "width": 20, "height": 10}
    triangle = {"name": "polygon", "all_points_x": [1, 11, 6], "all_points_y": [2, 2, 9.5]}
    regions = [
        {"shape_attributes": rect, "region_attributes": {"sign": "stop"}},
        {"shape_attributes": triangle, "region_attributes": {"sign": "go"}},
    ]
    via = {"a.png123": {"filename": "a.png", "size": 123, "regions": regions}}
    results = [
        {
            "original_width": 64,
            "original_height": 48,
            "type": "rectanglelabels",
            "value": {
                "x": 6.25,
                "y": 125 / 12,
                "width": 31.25,
                "height": 125 / 6,
                "rotation": 0,
                "rectanglelabels": ["stop"],
            },
        },
        {
            "original_width": 64,
            "original_height": 48,
            "type": "polygonlabels",
            "value": {
                "points": [[1 / 0.64, 2 / 0.48], [11 / 0.64, 2 / 0.48], [6 / 0.64, 9.5 / 0.48]],
                "polygonlabels": ["go"],
            },
        },
    ]
    task = {"data": {"image": "/data/upload/1/c.png"}, "annotations": [{"result": results}]}
    signs(tmp_path, **{"train.json": {"_via_img_metadata": via}, "val.json": [task]})
    objects = [("stop", BOX), ("go", POLYGON)]
    check(tmp_path, {"train": [(1, objects)], "val": [(3, objects)]})


# ---- VOC -----------------------------------------------------------------------------------------


def voc(name: str, *objects, size=SIZE) -> str:
    """A Pascal VOC file; objects are (class, xmin, ymin, xmax, ymax)."""
    entries = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}"
        f"</height><depth>3</depth></size>{entries}</annotation>"
    )


@pytest.mark.parametrize("layout", ["together", "JPEGImages", "lists"])
def test_voc(tmp_path, layout):
    train = {
        "знак 1.png": [("stop", 4, 5, 24, 15)],
        "b.v2.png": [("go", "1.5", 2, 9, 8)],
        "n.png": [],
    }
    val = {"знак 1.png": [("go", 4, 5, 24, 15)]}
    declared = {"format": "voc", "train": "train", "val": "val"}
    for split, images, seed in (("train", train, 10), ("val", val, 20)):
        for position, (name, objects) in enumerate(images.items()):
            xml = voc(name, *objects)
            stem = name.removesuffix(".png")
            if layout == "lists":
                stem = f"{split} {stem}"
                xml = voc(f"{stem}.png", *objects)
                name = f"{stem}.png"
                write(tmp_path / "Annotations" / f"{stem}.xml", "\ufeff" + xml)
                picture(tmp_path / "JPEGImages" / name, seed + position)
                declared[split] = f"ImageSets/Main/{split}.txt"
                with open(write(tmp_path / declared[split], b"") if position == 0 else
                          tmp_path / declared[split], "a") as file:  # fmt: skip
                    file.write(f"{stem}\r\n")
            else:
                folder = "Annotations/" if layout == "JPEGImages" else ""
                declared[split] = f"{folder}{split}"
                write(tmp_path / declared[split] / f"{stem}.xml", xml)
                images_folder = "JPEGImages" if layout == "JPEGImages" else ""
                picture(tmp_path / images_folder / split / name, seed + position)
    order = sorted(train) if layout != "lists" else list(train)
    seeds = {"знак 1.png": 10, "b.v2.png": 11, "n.png": 12}
    boxes = {
        "знак 1.png": [("stop", BOX)], "b.v2.png": [("go", (1.5, 2, 7.5, 6))], "n.png": [],
    }  # fmt: skip
    expected = {
        "train": [(seeds[name], boxes[name]) for name in order],
        "val": [(20, [("go", BOX)])],
    }
    _, data = check(tmp_path, expected, declared={"signs": declared})
    assert data.label_names("signs") == ["go", "stop"]


def test_odd_voc(tmp_path):
    good = [("stop", 4, 5, 24, 15), ("go", 1, 1, 9, 9)]
    files = {
        "a.xml": voc("a.png", *good, ("stop", 9, 9, 4, 4), ("", 1, 1, 5, 5)),
        "renamed.xml": voc("old name.png", *good),
        "no_extension.xml": voc("no_extension", *good),
        "bomb.xml": '<!DOCTYPE x [<!ENTITY a "aaaa">]>' + voc("&a;", *good),
        "broken.xml": "<annotation><object>",
        "outside.xml": voc("../secret.png", *good),
    }
    for name, content in files.items():
        write(tmp_path / "set/train" / name, content)
    picture(tmp_path / "set/secret.png", 66)
    for seed, name in enumerate(("a", "renamed", "no_extension"), start=1):
        picture(tmp_path / "set/train" / f"{name}.png", seed)
    write(tmp_path / "set/val/v.xml", voc("v.png", *good))
    picture(tmp_path / "set/val/v.png", 9)
    boxes = [("stop", BOX), ("go", (1, 1, 8, 8))]
    declared = {"format": "voc", "train": "set/train", "val": "set/val"}
    (summary,), _ = check(
        tmp_path,
        {"train": [(1, boxes), (3, boxes), (2, boxes)], "val": [(9, boxes)]},
        declared={"signs": declared},
    )
    assert summary.splits["train"]["faults"] == {
        "bad box": 1, "unknown category": 1, "bad entry": 2, "path outside": 1,
    }  # fmt: skip


# ---- YOLO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["images/{}", "{}/images", "{}"])
def test_yolo(tmp_path, layout):
    texts = {
        "train": {
            "a 1": "0 0.21875 0.208333333 0.3125 0.208333333\r\n",
            "day/b": "2 0 0 1 0 1 1 0 1",
        },
        "val": {"a 1": "1 0.5 0.5 1 1"},
    }
    declared = {"format": "yolo"}
    for split, seed in (("train", 10), ("val", 20)):
        declared[split] = layout.format(split)
        images = tmp_path / declared[split]
        labels = pathlib.Path(str(images).replace("/images", "/labels"))
        labels = images / "labels" if layout == "{}" else labels
        for position, (name, text) in enumerate(texts[split].items()):
            picture(images / f"{name}.png", seed + position)
            write(labels / f"{name}.txt", text)
    write(tmp_path / "data.yaml", "names: {0: stop, 2: 'go', 1: yield}\nnc: 3\n")
    everything = (0, 0, *SIZE)
    expected = {
        "train": [(10, [("stop", BOX)]), (11, [("go", everything)])],
        "val": [(20, [("yield", everything)])],
    }
    _, data = check(tmp_path, expected, declared={"signs": declared})
    assert data.label_names("signs") == ["stop", "yield", "go"]
    declared = {"format": "yolo", "data": "data.yaml"}
    lines = [f"{split}: ../{layout.format(split)}" for split in ("train", "val")]
    write(tmp_path / "data.yaml", "\n".join(["names: [stop, yield, go]", *lines]))  # as Roboflow
    check(tmp_path, expected, declared={"signs": declared})


def test_yolo_by_lists(tmp_path):
    """As darknet and Ultralytics write them: paths of the machine that they were made on, too."""
    for seed, name in enumerate(("a", "b", "c"), start=1):
        picture(tmp_path / f"set/images/{name}.png", seed)
        write(tmp_path / f"set/labels/{name}.txt", "0 0.5 0.5 1 1")
    write(tmp_path / "set/classes.txt", "stop\nyield\n")
    write(tmp_path / "set/train.txt", "./images/a.png\r\n/home/you/set/images/b.png\n")
    write(tmp_path / "set/val.txt", "images/c.png\n../../secret.png")
    declared = {"format": "yolo", "train": "set/train.txt", "val": "set/val.txt"}
    whole = [("stop", (0, 0, *SIZE))]
    (summary,), _ = check(
        tmp_path,
        {"train": [(1, whole), (2, whole)], "val": [(3, whole)]},
        declared={"signs": declared},
    )
    assert summary.splits["val"]["faults"] == {"path outside": 1}


def test_odd_yolo(tmp_path):
    lines = [
        "0 0.21875 0.208333333 0.3125 0.208333333",
        "0 0.21875 0.208333333 0.3125 0.208333333",
        "5 0.5 0.5 0.1 0.1",
        "0 300 200 40 40",
        "0 0.5 0.5 0 0.1",
        "0 0.5 0.5",
        "1 0.5 0.5 1 1 0.9",
        *(f"2 0.{n} 0.5 0.5 0.5" for n in range(2, 7)),
    ]
    write(tmp_path / "labels/train/a.txt", "\n".join(lines))
    picture(tmp_path / "images/train/a.png", 1)
    picture(tmp_path / "images/train/empty.png", 2)
    write(tmp_path / "labels/val/v.txt", "0 0.5 0.5 1 1")
    picture(tmp_path / "images/val/v.png", 3)
    write(tmp_path / "data.yaml", "names: [stop, yield, go]")
    declared = {"signs": {"format": "yolo", "train": "images/train", "val": "images/val"}}
    (summary,), data = check(
        tmp_path,
        {
            "train": [
                (1, [("stop", BOX), ("yield", (0, 0, *SIZE))]
                 + [("go", (6.4 * n - 16, 12, 32, 24)) for n in range(2, 7)]),
                (2, []),
            ]
        },
        declared=declared,
    )  # fmt: skip
    assert summary.splits["train"]["faults"] == {
        "duplicate object": 1, "unknown category": 1, "bad box": 1, "empty box": 1, "bad entry": 1,
        "box partly outside": 1,
    }  # fmt: skip
    assert "train: 1 images without a text: taken as images of no object" in summary.notes
    write(tmp_path / "data.yaml", "nc: 2\nnames: [stop, yield, go]")
    assert "data.yaml: nc is 2, names has 3" in error_of(tmp_path, declared)
    os.remove(tmp_path / "data.yaml")
    assert "no names of classes" in error_of(tmp_path, declared)
