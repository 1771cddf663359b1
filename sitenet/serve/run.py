"""The server of the page and the API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sitenet.model.checkpoint import load, shipped_weights

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT = "mp-gap"  # of the shipped weights, the first choice

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model
    from sitenet.serve.uploads import Bounds


def load_models(names: Sequence[str], device: str | torch.device = "cpu") -> dict[str, Model]:
    """Load models by name or path; none named takes all shipped weights.

    Returns:
        The models by the names under which they are chosen: shipped weights by their own, others by
        that of the run folder or file.

    Raises:
        FileNotFoundError, ValueError: As ``load``; or two models would have one name.
    """
    models: dict[str, Model] = {}
    shipped = sorted(shipped_weights(), key=lambda name: name != DEFAULT)
    for name in names or shipped:
        path = Path(name)
        short = path.parent.name if path.name == "model.safetensors" else path.name
        short = name if name in shipped else short.removesuffix(".safetensors")
        if short in models:
            raise ValueError(f"two models are called {short!r}: rename a file or folder")
        models[short] = load(name).to(device).eval()
    return models


def make_server(
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | torch.device = "cpu",
    bounds: Bounds | None = None,
) -> Any:
    """Load models and return a uvicorn server for them, whose ``run`` serves until it is stopped.

    Args:
        models: Names of shipped weights, model files or run folders; none takes all shipped
            weights.
        host: Address to listen on. Others than loopback let other machines in.
        port: Port to listen on.
        device: Device to run on.
        bounds: What a request may ask for; None takes the defaults.

    Raises:
        ImportError: Starlette, uvicorn or python-multipart is not installed.
        FileNotFoundError, ValueError: A model cannot be loaded.
    """
    try:
        import python_multipart  # noqa: F401
        import uvicorn

        from sitenet.serve.app import THREADS, create_app
    except ImportError:
        raise ImportError(
            "the server needs starlette, uvicorn and python-multipart: pip install 'sitenet[serve]'"
        ) from None
    loaded = load_models(models, device)
    torch.set_num_threads(max(1, torch.get_num_threads() // THREADS))
    app = create_app(loaded, bounds, LOOPBACK if host in LOOPBACK else None)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
