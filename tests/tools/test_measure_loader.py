"""The measuring tool runs and its pictures are what it says."""

import io

from PIL import Image

from unit_jax.tools import measure_loader as tool


def test_measuring_the_loader(monkeypatch, capsys):
    monkeypatch.setattr(tool, "DISTINCT", 2)
    monkeypatch.setattr("sys.argv", ["measure_loader.py", "--images", "24", "--workers", "0"])
    tool.main()
    shown = capsys.readouterr().out
    for part in ("decode", "resize", "images/s per core", "Pillow (used)", "worker processes"):
        assert part in shown
    with Image.open(io.BytesIO(tool.photograph(0))) as image:
        assert (image.format, image.size) == ("JPEG", (640, 480))
