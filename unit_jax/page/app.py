"""The page's server: a few files, and two questions that can be put to a model.

Starlette with uvicorn: small, no scripts or fonts from elsewhere, and what goes wrong with an
upload is told by us. Nothing is stored; pictures live as long as their request.
"""

import asyncio
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unit_jax.api import images
from unit_jax.api.model import Model
from unit_jax.api.results import Answers, Detections

LEAST_SCORE = 0.05  # of a detection that the page is told; its slider does the rest
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Limits(NamedTuple):
    """What one visitor may ask for."""

    upload_bytes: int = 10_000_000
    pixels: int = 40_000_000
    text_characters: int = 2000
    per_minute: int = 120  # questions of one address


class Refused(Exception):
    """A request that is answered with a line for the visitor."""

    def __init__(self, status: int, told: str):
        super().__init__(told)
        self.status, self.told = status, told


class Rate:
    """A bucket of tokens per address: a burst of ten seconds' worth, then the rate."""

    def __init__(self, per_minute: int):
        self._each = per_minute / 60
        self._most = max(1.0, 10 * self._each)
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> bool:
        """Whether one more question is within the rate."""
        now = time.monotonic()
        left, then = self._left.get(address, (self._most, now))
        left = min(self._most, left + (now - then) * self._each)
        if len(self._left) > 10_000:  # addresses that came once
            self._left.clear()
        self._left[address] = (max(left - 1, 0) if left >= 1 else left, now)
        return left >= 1


def make_app(model: Model, limits: Limits = Limits(), hosts: tuple[str, ...] = ()) -> Starlette:  # noqa: B008
    """The application.

    Args:
      hosts: names under which it may be called besides those of this machine; "*" = any. Others
        are refused, so that no foreign page can reach it through a name that points here.
    """
    rate, one_at_a_time = Rate(limits.per_minute), asyncio.Lock()

    async def answered(request: Request, ask: Callable[[dict], dict[str, Any]]) -> Response:
        try:
            if not rate.take(request.client.host if request.client else ""):
                raise Refused(429, "too many questions; wait a few seconds")
            asked = await _asked(request, model, limits)
            async with one_at_a_time:  # the model is one
                start = time.perf_counter()
                said = await asyncio.to_thread(ask, asked)
            said["milliseconds"] = round(1000 * (time.perf_counter() - start))
            return JSONResponse(said, headers=HEADERS)
        except Refused as refused:
            return JSONResponse({"error": refused.told}, refused.status, HEADERS)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400, HEADERS)

    async def predict(request: Request) -> Response:
        return await answered(request, lambda asked: _predict(model, asked))

    async def explain(request: Request) -> Response:
        return await answered(request, lambda asked: _explain(model, asked))

    async def about(request: Request) -> Response:
        return JSONResponse(describe(model, limits), headers=HEADERS)

    def page(request: Request) -> Response:
        return _file("static", "index.html")

    def own_file(request: Request) -> Response:
        return _file(request.path_params["folder"], request.path_params["name"])

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/model", about),
            Route("/api/predict", predict, methods=["POST"]),
            Route("/api/explain", explain, methods=["POST"]),
            Route("/{folder}/{name}", own_file),
        ],
        middleware=[
            Middleware(
                TrustedHostMiddleware,
                allowed_hosts=["localhost", "127.0.0.1", "[::1]", *hosts],
                www_redirect=False,
            )
        ],
    )


def describe(model: Model, limits: Limits) -> dict[str, Any]:
    """What the page needs to know of the model."""
    tasks = [
        {
            "name": name,
            "inputs": list(spec.inputs),
            "output": spec.output,
            "labels": list(model.labels(name))[:50],
            "hint": _hint(name, model),
        }
        for name, spec in model.specs.items()
    ]
    return {
        "source": model.source,
        "parameters": sum(x.size for x in model.params.values()),
        "tasks": tasks,
        "pictures": sorted(p.name for p in _folder("pictures").iterdir() if p.suffix == ".png"),
        "limits": limits._asdict(),
    }


def _hint(name: str, model: Model) -> list[str]:
    """Example texts for a task's fields, in words that the demo knows."""
    hints = {
        "vqa2": ["what color is the square?"],
        "snli_ve": ["there is a red square"],
        "qnli": ["what color is the star?", "the star is green"],
        "mnli": ["the red star is big", "a star is red"],
        "qqp": ["what color is the ring?", "which color does the ring have?"],
        "sst2": ["a lovely picture of a star"],
    }
    if name in hints:
        return hints[name] if model.source == "demo" else ["" for _ in hints[name]]
    spec = model.spec(name)
    return ["", ""] if spec.has_text and not spec.has_image else [""] * spec.has_text


async def _asked(request: Request, model: Model, limits: Limits) -> dict[str, Any]:
    """The fields of a question, checked.

    Raises:
      Refused: too large, or no such task.
    """
    told = f"the picture is larger than {limits.upload_bytes / 1e6:.0f} MB"
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise Refused(411, "a question must say its length")
    if int(length) > limits.upload_bytes + 20_000:
        raise Refused(413, told)
    form = await request.form(max_files=1, max_fields=8, max_part_size=20_000)
    try:
        asked = {name: value for name, value in form.items() if isinstance(value, str)}
        upload = form.get("image")
        content = await upload.read() if upload is not None and not isinstance(upload, str) else b""
    finally:
        await form.close()
    if len(content) > limits.upload_bytes:
        raise Refused(413, told)
    if asked.get("task") not in model.specs:
        raise Refused(400, f"this model has no task {asked.get('task', '')!r}")
    spec = model.spec(asked["task"])
    for name in ("text", "text_b"):
        if len(asked.get(name, "")) > limits.text_characters:
            raise Refused(400, f"the text has more than {limits.text_characters} characters")
    if spec.has_text and not asked.get("text", "").strip():
        raise Refused(400, "write a text first")
    if spec.has_image and not content:
        raise Refused(400, "choose a picture first")
    pixels = None
    if spec.has_image:
        pixels = images.read(content, exif=model.exif, max_pixels=limits.pixels).pixels
    return {**asked, "image": pixels}


def _given(model: Model, asked: dict[str, Any]) -> dict[str, Any]:
    has_text = model.spec(asked["task"]).has_text
    return dict(
        image=asked["image"],
        text=asked.get("text", "").strip() if has_text else None,
        text_b=asked.get("text_b", "").strip() if has_text else None,
    )


def _predict(model: Model, asked: dict[str, Any]) -> dict[str, Any]:
    task = asked["task"]
    result = model.predict(task, **_given(model, asked), threshold=LEAST_SCORE, top=100)
    assert isinstance(result, Detections | Answers)  # of one example
    said = result.to_dict()
    if isinstance(result, Detections):
        for line, one in zip(said["detections"], result, strict=True):
            line |= {"label_id": one.label_id, "query": one.query}
        said |= {"height": result.size[0], "width": result.size[1]}
    else:
        said["answers"] = said["answers"][:8]
    return said


def _explain(model: Model, asked: dict[str, Any]) -> dict[str, Any]:
    """Attention over the picture: of one query's box, of the answer, or of a point."""
    task = asked["task"]
    told = model.explain(task, **_given(model, asked), threshold=0.0, top=100)
    said: dict[str, Any] = {}
    if told.image_attention is not None:
        if "x" in asked and "y" in asked:
            weights = told.at(float(asked["x"]), float(asked["y"]))
        else:
            query = int(asked.get("query") or told.queries[0])
            if query not in told.queries:
                raise ValueError(f"there is no query {query}")
            weights = told.looked()[told.queries.index(query)]
        said["attention"] = [[round(float(x), 5) for x in row] for row in weights]
    if told.word_effects is not None:
        effects = zip(told.words, told.word_effects, strict=True)
        said["words"] = [{"word": w, "effect": round(float(e), 4)} for w, e in effects]
    return said


def _folder(name: str):
    return resources.files("unit_jax.page" if name == "static" else "unit_jax.demo") / name


def _file(folder: str, name: str) -> Response:
    """One of the package's own files, by name alone."""
    suffix = name[name.rfind(".") :]
    known = folder in ("static", "pictures") and suffix in TYPES and not {"/", "\\"} & set(name)
    path = _folder(folder) / name
    if not known or not path.is_file():
        return JSONResponse({"error": "no such file"}, 404, HEADERS)
    return Response(path.read_bytes(), media_type=TYPES[suffix], headers=HEADERS)
