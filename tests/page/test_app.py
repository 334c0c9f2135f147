"""The page's server: what it answers, what it refuses, and that it is for this machine alone."""

import importlib.metadata
import io
import json
import threading
import time
import tomllib
import urllib.error
import urllib.request
import uuid

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import unit_jax
from tests import ROOT

uvicorn = pytest.importorskip("uvicorn", reason='the page needs the extra: pip install -e ".[app]"')
from unit_jax.page import app  # noqa: E402

QUESTION = "what color is the square?"


def serve(application):
    """(base address, function that ends it)."""
    server = uvicorn.Server(
        uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.time() + 60
    while not server.started and time.time() < end:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop():
        server.should_exit = True
        thread.join(20)

    return f"http://127.0.0.1:{port}", stop


@pytest.fixture(scope="module")
def model():
    return unit_jax.load("demo", batch_size=1)


@pytest.fixture(scope="module")
def address(model):
    limits = app.Limits(upload_bytes=300_000, pixels=500_000, per_minute=6000)
    base, stop = serve(app.make_app(model, limits))
    yield base
    stop()


def ask(base: str, path: str, image: bytes | None = None, headers=(), **fields: str):
    """(status, what was answered) of a form."""
    border = uuid.uuid4().hex
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if image is not None:
        head = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        parts.append(head.encode() + image + b"\r\n")
    body = b"".join([*parts, f"--{border}--\r\n".encode()])
    request = urllib.request.Request(base + path, body, dict(headers), method="POST")
    request.add_header("Content-Type", f"multipart/form-data; boundary={border}")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


@pytest.fixture(scope="module")
def picture():
    name = next(p for p in (app._folder("pictures")).iterdir() if p.suffix == ".png")
    return name.read_bytes()


def test_it_says_what_the_model_says(model, address, picture):
    status, said = ask(address, "/api/predict", picture, task="coco")
    ours = model.detect(picture, threshold=app.LEAST_SCORE)
    assert status == 200 and len(ours) == len(said["detections"]) > 0
    for a, b in zip(ours, said["detections"], strict=True):
        assert a.label == b["label"] and abs(a.score - b["score"]) < 1e-4
        assert np.allclose(a.box_xyxy, b["box_xyxy"], atol=1e-2)
    status, said = ask(address, "/api/predict", picture, task="vqa2", text=QUESTION)
    assert status == 200 and said["answers"][0]["label"] == model.answer(picture, QUESTION).best
    status, said = ask(address, "/api/predict", task="qqp", text="is it red?", text_b="is it blue?")
    expected = model.classify("qqp", "is it red?", "is it blue?")
    assert abs(said["answers"][0]["score"] - expected.score) < 1e-4


def test_attention_of_the_answer_a_box_and_a_point(address, picture):
    status, told = ask(address, "/api/explain", picture, task="vqa2", text=QUESTION)
    assert status == 200 and [w["word"] for w in told["words"]] == QUESTION.split()
    weights = np.asarray(told["attention"])
    assert weights.ndim == 2 and (weights >= 0).all() and 0 < weights.sum() <= 1.01
    boxes = [ask(address, "/api/explain", picture, task="coco", query=str(q))[1] for q in (0, 1)]
    assert boxes[0]["attention"] != boxes[1]["attention"]
    status, told = ask(address, "/api/explain", picture, task="coco", x="3", y="4")
    assert status == 200 and np.asarray(told["attention"]).shape == weights.shape


def large(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "fields, status, told",
    [
        (dict(task="coco"), 400, "choose a picture first"),
        (dict(task="nothing"), 400, "no task 'nothing'"),
        (dict(task="coco", image=b"no picture"), 400, "no picture that Pillow can read"),
        (dict(task="coco", image=bytes(400_000)), 413, "larger than 0 MB"),
        (dict(task="coco", image=large(1000, 600)), 400, "more than 500,000"),
        (dict(task="vqa2", image=large(9, 9)), 400, "write a text first"),
        (dict(task="qqp", text="a" * 2001), 400, "more than 2000 characters"),
    ],
)
def test_bad_input_is_one_line(address, fields, status, told):
    got, said = ask(address, "/api/predict", **fields)
    assert got == status and told in said["error"] and "\n" not in said["error"]


def test_it_is_for_this_machine_and_at_a_measured_pace(model, address, picture):
    status, said = ask(address, "/api/predict", picture, [("Host", "evil.example")], task="coco")
    assert status == 400 and "host" in str(said).lower()
    base, stop = serve(app.make_app(model, app.Limits(per_minute=12)))
    statuses = [ask(base, "/api/predict", task="coco")[0] for _ in range(4)]
    stop()
    assert statuses == [400, 400, 429, 429]  # two at once, then one in five seconds


def test_the_lock_holds_what_the_extra_wants():
    """No extra takes the lock back to an ancient release."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.lower().split("==") for line in (ROOT / "requirements.lock").read_text().split()
        if "==" in line
    )  # fmt: skip
    wanted = [Requirement(line) for line in extras["optional-dependencies"]["app"]]
    assert {"starlette", "uvicorn"} < {one.name for one in wanted}
    for one in wanted:
        assert one.specifier.contains(pins[one.name.lower()]), one
        assert one.specifier.contains(importlib.metadata.version(one.name)), one


def test_its_files_call_nobody(address):
    for path, kind in (("/", "text/html"), ("/static/app.js", "text/javascript")):
        with urllib.request.urlopen(address + path, timeout=60) as response:
            text = response.read().decode()
            assert response.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "://" not in text.replace("http://www.w3.org", "")
    for path in ("/static/../app.py", "/static/app.py", "/etc/passwd", "/pictures/none.png"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(address + path, timeout=60)
        assert error.value.code == 404
