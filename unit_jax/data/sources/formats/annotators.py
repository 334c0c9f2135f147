"""The own JSON of annotation tools turned into COCO's: VIA, Label Studio, LabelMe's folders."""

from collections.abc import Iterable, Mapping
from typing import Any


def as_coco(content: Any) -> Any:
    """A tool's own JSON as COCO's lists; anything else is returned unchanged."""
    if isinstance(content, Mapping):
        via = content.get("_via_img_metadata", content)
        if isinstance(via, Mapping) and via and all(map(_is_via, via.values())):
            return _collect(map(_via_image, via.values()))
    if isinstance(content, list) and content and all(map(_is_label_studio, content)):
        return _collect(map(_label_studio_image, content))
    return content


def is_labelme(content: Any) -> bool:
    """Whether a file's JSON is that of one image of LabelMe."""
    return isinstance(content, Mapping) and {"shapes", "imagePath"} <= content.keys()


def labelme_as_coco(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """COCO's lists of LabelMe's files, one for each image."""
    return _collect(map(_labelme_image, contents))


_Objects = list[tuple[str, dict[str, Any]]]  # (class, bbox or segmentation)


def _collect(images: Iterable[tuple[dict[str, Any], _Objects]]) -> dict[str, Any]:
    listed, annotations = [], []
    for number, (image, objects) in enumerate(images):
        listed.append({"id": number, **image})
        annotations += [
            {"id": len(annotations) + n, "image_id": number, "category_id": name, **shape}
            for n, (name, shape) in enumerate(objects)
        ]
    names = sorted({entry["category_id"].strip() for entry in annotations} - {""})
    categories = [{"id": name, "name": name} for name in names]
    return {"images": listed, "annotations": annotations, "categories": categories}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_via(image: Any) -> bool:
    return isinstance(image, Mapping) and {"filename", "regions"} <= image.keys()


def _via_image(image: Mapping[str, Any]) -> tuple[dict[str, Any], _Objects]:
    objects: _Objects = []
    regions = image["regions"]
    for region in regions.values() if isinstance(regions, Mapping) else _list(regions):
        shape = _dict(_dict(region).get("shape_attributes"))
        # The class is the one attribute that regions have, or the first one that is a choice.
        values = list(_dict(_dict(region).get("region_attributes")).values())
        name = next((str(value) for value in values if isinstance(value, str) and value), "")
        if shape.get("name") == "rect":
            told = {"bbox": [shape.get(key) for key in ("x", "y", "width", "height")]}
        elif shape.get("name") in ("circle", "ellipse"):
            rx, ry = (shape.get(key, shape.get("r")) for key in ("rx", "ry"))
            told = {"bbox": _around(shape.get("cx"), shape.get("cy"), rx, ry)}
        else:
            x, y = _list(shape.get("all_points_x")), _list(shape.get("all_points_y"))
            told = {"segmentation": [[v for pair in zip(x, y, strict=False) for v in pair]]}
        objects.append((name, told))
    return {"file_name": image["filename"]}, objects


def _around(x: Any, y: Any, rx: Any, ry: Any) -> list[float] | None:
    if not all(isinstance(value, int | float) for value in (x, y, rx, ry)):
        return None
    return [x - rx, y - ry, 2 * rx, 2 * ry]


def _labelme_image(content: Mapping[str, Any]) -> tuple[dict[str, Any], _Objects]:
    objects: _Objects = []
    for shape in map(_dict, _list(content["shapes"])):
        points = [_list(point) for point in _list(shape.get("points"))]
        told: dict[str, Any] = {"bbox": None}
        try:
            if shape.get("shape_type") == "rectangle":
                (x0, y0), (x1, y1) = points
                told = {"bbox": [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]}
            elif shape.get("shape_type") == "circle":
                (x0, y0), (x1, y1) = points
                radius = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
                told = {"bbox": _around(x0, y0, radius, radius)}
            elif points:
                told = {"segmentation": [[value for point in points for value in point]]}
        except (TypeError, ValueError, OverflowError):
            pass  # a fault of the object, found where boxes are read
        objects.append((str(shape.get("label", "")), told))
    size = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
    return {"file_name": content["imagePath"], **size}, objects


def _is_label_studio(task: Any) -> bool:
    return isinstance(task, Mapping) and isinstance(task.get("data"), Mapping)


def _label_studio_image(task: Mapping[str, Any]) -> tuple[dict[str, Any], _Objects]:
    texts = [value for value in task["data"].values() if isinstance(value, str)]
    image: dict[str, Any] = {"file_name": texts[0] if texts else ""}
    objects: _Objects = []
    for annotation in map(_dict, _list(task.get("annotations"))[:1]):  # the first one's
        for result in map(_dict, _list(annotation.get("result"))):
            value = _dict(result.get("value"))
            width, height = result.get("original_width"), result.get("original_height")
            names = [v for key, v in value.items() if key.endswith("labels")]
            if not names or not all(isinstance(side, int | float) for side in (width, height)):
                continue
            image |= {"width": width, "height": height}
            told: dict[str, Any] = {"bbox": None}
            try:
                if "points" in value:
                    points = [(x * width / 100, y * height / 100) for x, y in value["points"]]
                    told = {"segmentation": [[v for point in points for v in point]]}
                else:
                    sides = (("x", width), ("y", height), ("width", width), ("height", height))
                    told = {"bbox": [value[key] * side / 100 for key, side in sides]}
            except (KeyError, TypeError, ValueError):
                pass  # a fault of the object, found where boxes are read
            objects += [(str(name), told) for name in _list(names[0])]
    return image, objects
