"""A server of the page and the API in a thread of the test."""

import contextlib
import socket
import threading
import time

import pytest


@contextlib.contextmanager
def serving(models, **options):
    """Serve models; yields the address."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("python_multipart")
    app = pytest.importorskip("sitenet.serve.app").create_app(models, **options)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
