"""The web application: one page, and a JSON API that calls the functions behind the commands.

Computing takes turns: each request computes a slice of its structures in one of a few threads and
then waits behind the others, so that a large request does not hold up small ones.
"""

from __future__ import annotations

import asyncio
import csv
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sitenet.data.failures import LeftOut
from sitenet.inference.table import Cell
from sitenet.model.ensemble import Model
from sitenet.serve.answers import Encodings, Options, Prediction, explanation, one_crystal, report
from sitenet.serve.openapi import openapi
from sitenet.serve.protection import REPORT_POLICY, Protection
from sitenet.serve.uploads import Bounds, Refused, Upload, harmless
from sitenet.system.environment import info
from sitenet.system.files import cell_text

T = TypeVar("T")
THREADS = 2  # slices that are computed at a time

_ASSETS = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


class Server:
    """The answers to all requests.

    Args:
        models: by the names under which they are chosen.
        bounds: what a request may ask for.
    """

    def __init__(self, models: Mapping[str, Model], bounds: Bounds) -> None:
        self.models, self.bounds = dict(models), bounds
        self._active = 0
        self._turns: anyio.CapacityLimiter | None = None

    def routes(self) -> list[Route]:
        """The page and the API."""
        page = [Route(path, self.asset, methods=["GET"]) for path in _ASSETS]
        api = [
            Route("/api/info", self.info, methods=["GET"]),
            Route("/api/models", self.list_models, methods=["GET"]),
            Route("/api/predict", self.predict, methods=["POST"]),
            Route("/api/explain", self.explain, methods=["POST"]),
            Route("/api/encode", self.encode, methods=["POST"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]
        return page + api

    async def asset(self, request: Request) -> Response:
        name, kind = _ASSETS[request.url.path]
        return Response(_asset(name), media_type=kind)

    async def info(self, request: Request) -> Response:
        return JSONResponse(info())

    async def list_models(self, request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "name": name,
                    "targets": [
                        {"name": t.name, "unit": t.unit, "kind": t.kind} for t in model.targets
                    ],
                    "calibrated": model.calibration is not None,
                }
                for name, model in self.models.items()
            ]
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(list(self.models), self.bounds))

    async def predict(self, request: Request) -> Response:
        async with self._admitted(request) as (fields, uploads):
            name, model = self._model(fields)
            job = Prediction(model, uploads, Options.of(fields), self.bounds)
            await self._finish(request, job)
        if fields.get("format") == "csv":
            rows = [cells for _, cells in job.rows]
            return Response(_csv(job.header, rows), media_type="text/csv", headers=_download)
        rows_of_files = [
            {"file": file, **dict(zip(job.header, map(_plain, cells), strict=True))}
            for file, cells in job.rows
        ]
        answer = {"model": name, "columns": job.header, "rows": rows_of_files}
        return JSONResponse(answer | {"left_out": _left_out(job.left_out)})

    async def explain(self, request: Request) -> Response:
        async with self._admitted(request) as (fields, uploads):
            _, model = self._model(fields)
            options = Options.of(fields)
            as_html = fields.get("format") == "html"

            def compute() -> Any:
                crystal = one_crystal(model, uploads, fields.get("id", ""), options, self.bounds)
                return (report if as_html else explanation)(model, crystal, options)

            answer = await self._turn(compute)
        if not as_html:
            return JSONResponse(answer)
        return HTMLResponse(answer, headers={"Content-Security-Policy": REPORT_POLICY})

    async def encode(self, request: Request) -> Response:
        async with self._admitted(request) as (fields, uploads):
            name, model = self._model(fields)
            job = Encodings(model, uploads, Options.of(fields), self.bounds)
            await self._finish(request, job)
        answer = {"model": name, "ids": job.ids, "encodings": job.vectors}
        return JSONResponse(answer | {"left_out": _left_out(job.left_out)})

    def _model(self, fields: Mapping[str, str]) -> tuple[str, Model]:
        name = fields.get("model") or next(iter(self.models))
        if name not in self.models:
            raise Refused(404, f"no model {name!r:.80}; there is {', '.join(self.models)}")
        return name, self.models[name]

    @asynccontextmanager
    async def _admitted(self, request: Request) -> Any:
        """The fields and files of a request, once there is room for it."""
        if self._active >= self.bounds.waiting:
            raise Refused(503, f"{self._active} requests are waiting; try again later")
        self._active += 1
        try:
            try:
                async with asyncio.timeout(self.bounds.seconds):
                    form = await _read_form(request, self.bounds)
            except TimeoutError:
                reason = f"the upload took longer than {self.bounds.seconds} s"
                raise Refused(408, reason) from None
            yield form
        finally:
            self._active -= 1

    async def _turn(self, function: Callable[[], T]) -> T:
        """Compute something in a thread, in turn with other requests."""
        if self._turns is None:
            self._turns = anyio.CapacityLimiter(THREADS)
        return await anyio.to_thread.run_sync(function, limiter=self._turns)

    async def _finish(self, request: Request, job: Prediction | Encodings) -> None:
        """Compute slice after slice until none is left, the time is up or the client has gone."""
        end = asyncio.get_running_loop().time() + self.bounds.seconds
        while await self._turn(job.step):
            if asyncio.get_running_loop().time() > end:
                job.stop(f"time limit of {self.bounds.seconds} s")
                return
            if await request.is_disconnected():
                raise ClientDisconnect


async def _read_form(request: Request, bounds: Bounds) -> tuple[dict[str, str], list[Upload]]:
    """The text fields of a form and its files; the field ``text`` is a file too."""
    size = bounds.megabytes * 2**20
    try:
        async with request.form(max_files=bounds.files, max_fields=20, max_part_size=size) as form:
            fields = {key: value for key, value in form.multi_items() if isinstance(value, str)}
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            uploads = [Upload(harmless(file.filename), await file.read()) for file in files]
    except HTTPException as error:
        status = 413 if "Too many" in error.detail or "exceeded" in error.detail else 400
        raise Refused(status, error.detail) from None
    text = fields.pop("text", "")
    if text.strip():
        uploads.append(Upload("pasted.cif", text.encode()))
    if not uploads:
        raise Refused(422, "no file: send files, or the text of a CIF as text")
    return fields, uploads


@functools.cache
def _asset(name: str) -> str:
    return (resources.files("sitenet.serve") / "page" / name).read_text(encoding="utf-8")


_download = {"Content-Disposition": 'attachment; filename="predictions.csv"'}


def _csv(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Rows as the CSV that ``sitenet predict`` writes; texts cannot be taken for formulas."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_no_formula(c) if isinstance(c, str) else cell_text(c) for c in row])
    return file.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _plain(cell: Cell) -> Cell:
    """A cell as JSON has it, which knows no NaN."""
    return None if isinstance(cell, float) and cell != cell else cell


def _left_out(left_out: Sequence[tuple[int, LeftOut]]) -> list[dict[str, Any]]:
    return [{"file": file, **vars(one)} for file, one in left_out]


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"Retry-After": "5"} if error.status == 503 else None
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _value_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # to nobody


async def _unforeseen(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"unforeseen {type(error).__name__}"}, 500)


def create_app(
    models: Mapping[str, Model], bounds: Bounds | None = None, hosts: Sequence[str] | None = None
) -> Starlette:
    """The application.

    Args:
        models: by the names under which they are chosen; the first is the default.
        bounds: what a request may ask for; None takes the defaults.
        hosts: names of this machine that requests may use; None takes any.

    Raises:
        ValueError: there is no model.
    """
    if not models:
        raise ValueError("expected a model to serve, got none")
    bounds = bounds or Bounds()
    app = Starlette(
        routes=Server(models, bounds).routes(),
        exception_handlers={
            Refused: _refuse,
            HTTPException: _http_error,
            ValueError: _value_error,
            ImportError: _value_error,
            ClientDisconnect: _gone,
            Exception: _unforeseen,
        },
    )
    app.add_middleware(Protection, bounds=bounds, hosts=hosts)
    return app
