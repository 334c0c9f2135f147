"""examples/tour.ipynb is a notebook, and runs from top to bottom."""

import json

import pytest

from docs.site import notebook
from tests import ROOT

TOUR = ROOT / "examples" / "tour.ipynb"


def test_it_is_a_notebook_without_outputs():
    held = json.loads(TOUR.read_text())
    assert (held["nbformat"], held["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in held["cells"]}) == len(held["cells"]) > 20
    for cell in held["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, as a user has
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tour")))
        patch.setattr("tempfile.tempdir", None)  # it is looked up once
        patch.chdir(ROOT)  # the notebook goes elsewhere; this comes back
        return notebook.run(TOUR)


@pytest.mark.slow  # and at every `make docs`, whose pages hold what it shows
def test_it_runs_and_shows_something(cells):
    code = [cell for cell in cells if cell.kind == "code"]
    assert sum(cell.picture is not None for cell in code) >= 5
    told = "\n".join(cell.told for cell in code)
    assert "UniT with" in told and "| coco | AP50 |" in told
    text, pictures = notebook.as_markdown(cells, "tour")
    assert len(pictures) >= 5 and all(f"]({name})" in text for name in pictures)
    assert all(data.startswith(b"\x89PNG") and len(data) < 200_000 for data in pictures.values())
