"""The measuring tool runs and its pictures are what it says."""

import importlib.util
import io
import pathlib

from PIL import Image


def load():
    path = pathlib.Path(__file__).parent.parent / "tools" / "measure_loader.py"
    spec = importlib.util.spec_from_file_location("measure_loader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measuring_the_loader(monkeypatch, capsys):
    tool = load()
    monkeypatch.setattr(tool, "DISTINCT", 2)
    monkeypatch.setattr("sys.argv", ["measure_loader.py", "--images", "24", "--workers", "0"])
    tool.main()
    shown = capsys.readouterr().out
    for part in ("decode", "resize", "images/s per core", "Pillow (used)", "worker processes"):
        assert part in shown
    with Image.open(io.BytesIO(tool.photograph(0))) as image:
        assert (image.format, image.size) == ("JPEG", (640, 480))
