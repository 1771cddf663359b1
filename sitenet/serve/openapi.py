"""The description of the JSON API: OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sitenet
from sitenet.inference.table import COVERAGE
from sitenet.serve.uploads import Bounds

_ERRORS = {
    400: "The form cannot be read.",
    403: "The request comes from another page.",
    404: "There is no such model or structure.",
    408: "The upload takes too long.",
    413: "The request is too large, or holds too many structures.",
    422: "An option has a wrong value, or the structure cannot be used.",
    503: "Too many requests are waiting; try again later.",
}


def openapi(models: Sequence[str], bounds: Bounds) -> dict[str, Any]:
    """Describe the API of a server with these models."""
    limits = (
        f"A request holds at most {bounds.megabytes} MB, {bounds.files} files and "
        f"{bounds.structures} structures of {bounds.sites} sites, and may take {bounds.seconds} s."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sitenet",
            "version": sitenet.__version__,
            "description": f"Properties of crystals from their structure files. {limits}",
        },
        "paths": {
            "/api/info": {"get": _get("Version, SIMD level, threads, torch and CUDA", _OBJECT)},
            "/api/models": {"get": _get("The models of this server", _listed("Model"))},
            "/api/predict": {
                "post": _post(
                    "Predict properties, as sitenet predict",
                    models,
                    {
                        "coverage": {
                            "type": "number",
                            "minimum": 0.5,
                            "maximum": 0.99,
                            "default": COVERAGE,
                            "description": "Fraction of true values that intervals should contain.",
                        },
                        "format": {"type": "string", "enum": ["json", "csv"], "default": "json"},
                    },
                    {"application/json": _of("Predictions"), "text/csv": {"type": "string"}},
                )
            },
            "/api/explain": {
                "post": _post(
                    "Show what a model attends to in one structure, as sitenet explain",
                    models,
                    {
                        "id": {
                            "type": "string",
                            "description": "Id of the structure; the first one by default.",
                        },
                        "format": {"type": "string", "enum": ["json", "html"], "default": "json"},
                    },
                    {"application/json": _of("Explanation"), "text/html": {"type": "string"}},
                )
            },
            "/api/encode": {
                "post": _post(
                    "Compute encodings, as sitenet encode",
                    models,
                    {},
                    {"application/json": _of("Encodings")},
                )
            },
        },
        "components": {"schemas": _SCHEMAS},
    }


_OBJECT = {"type": "object"}


def _of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _listed(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _of(name)}


def _answer(description: str, contents: dict[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in contents.items()}
    return {"description": description, "content": content}


def _get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    answer = _answer(summary, {"application/json": schema})
    return {"summary": summary, "responses": {"200": answer}}


def _post(
    summary: str, models: Sequence[str], fields: dict[str, Any], contents: dict[str, Any]
) -> dict[str, Any]:
    properties = {
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "Structure files; their names tell their forms.",
        },
        "text": {"type": "string", "description": "Text of a CIF, instead of files or with them."},
        "model": {"type": "string", "enum": list(models), "default": models[0]},
        **fields,
        "max_sites": {
            "type": "integer",
            "minimum": 0,
            "maximum": 500,
            "description": "Sites of the largest supercell; the model's by default.",
        },
        "primitive": {
            "type": "boolean",
            "description": "Reduce structures to primitive cells; as in training by default.",
        },
        "disorder": {
            "type": "string",
            "enum": ["error", "average"],
            "description": "Refuse partial occupancy, or average over it; as in training by "
            "default.",
        },
    }
    schema = {"type": "object", "properties": properties}
    errors = {
        str(status): _answer(text, {"application/json": _of("Error")})
        for status, text in _ERRORS.items()
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
        "responses": {"200": _answer(summary, contents), **errors},
    }


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT = {"type": "string"}
_FILE = {"type": "integer", "description": "Number of the file, from 0; -1 for none."}
_COLUMNS = {"type": "object", "description": "Columns of equal length by name."}

_SCHEMAS: dict[str, Any] = {
    "Error": _record(error=_TEXT),
    "Target": _record(name=_TEXT, unit=_TEXT, kind={"type": "string", "enum": ["value", "class"]}),
    "Model": _record(name=_TEXT, targets=_listed("Target"), calibrated={"type": "boolean"}),
    "LeftOut": _record(file=_FILE, id=_TEXT, where=_TEXT, reason=_TEXT, kind=_TEXT),
    "Predictions": _record(
        model=_TEXT,
        columns={"type": "array", "items": _TEXT},
        rows={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"file": _FILE, "id": _TEXT},
                "required": ["file", "id"],
                "description": "A value per column: numbers, texts or null.",
            },
        },
        left_out=_listed("LeftOut"),
    ),
    "Explanation": _record(
        id=_TEXT, formula=_TEXT, elements=_COLUMNS, sites=_COLUMNS, pairs=_COLUMNS
    ),
    "Encodings": _record(
        model=_TEXT,
        ids={"type": "array", "items": _TEXT},
        encodings={"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        left_out=_listed("LeftOut"),
    ),
}
