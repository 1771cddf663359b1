"""What stands between the network and the application: sizes, hosts, origins and headers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sitenet.serve.uploads import Bounds, Refused

_SOURCES = "default-src 'none'; frame-ancestors 'self'; base-uri 'none'; "
PAGE_POLICY = _SOURCES + (
    "script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'"
)
# A report has its scripts within it; it runs without the page's origin.
REPORT_POLICY = _SOURCES + (
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; sandbox allow-scripts"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Protection:
    """Refuse requests that are too large, or that another page sends; add headers to answers.

    Args:
        app: the application.
        bounds: its bounds; the size counts what arrives, whatever the headers say.
        hosts: names of this machine that requests may use, None for any. With a server on
            loopback, this keeps pages out whose name resolves to it.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds, hosts: Sequence[str] | None) -> None:
        self.app, self.hosts = app, hosts
        self.most = bounds.megabytes * 2**20
        self.reason = f"the request is larger than {bounds.megabytes} MB"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        if refused is not None:
            answer = JSONResponse({"error": str(refused)}, refused.status)
            await answer(scope, receive, protected)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise Refused(413, self.reason)
            return message

        await self.app(scope, counted, protected)

    def _refusal(self, method: str, headers: Headers) -> Refused | None:
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            return Refused(421, "the request names another host")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if method == "POST" and foreign:
            return Refused(403, "the request comes from another page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most:
            return Refused(413, self.reason)
        return None


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
