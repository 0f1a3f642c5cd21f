"""What stands before every page: hosts, origins, sizes, and the headers of every response."""

import asyncio
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from constitutional.review.settings import LOOPBACK

MOST_BYTES: Final = 2**20
"""Of what a page sends, in which a letter of the longest reply takes up to 12; URLs are bounded by the server."""
BODY_S: Final = 30.0
"""Seconds within which all of it must have come."""
TRIES: Final = 20
"""Wrong tokens from one address within a minute, after which none is tried."""
WINDOW_S: Final = 60.0
MOST_ADDRESSES: Final = 10_000


class Guard:
    """Lets through what was sent to this site by its own pages, and puts the headers on whatever is answered."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        self._app = app
        self._origin = url.lower()
        parts = urlsplit(self._origin)
        local = parts.hostname in LOOPBACK
        self._trustworthy = parts.scheme == "https" or local
        usual = {"http": 80, "https": 443}.get(parts.scheme)
        port = parts.port or usual
        names = ["127.0.0.1", "localhost", "[::1]"] if local else [parts.netloc.removesuffix(f":{parts.port}")]
        # Browsers leave the port out where it is the usual one of the scheme.
        self._hosts = {parts.netloc} | {f"{name}:{port}" for name in names} | {*(names if port == usual else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            return
        nonce = scope.setdefault("state", {})["nonce"] = secrets.token_urlsafe(16)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_headers(nonce))
            await send(message)

        if refused := self._refusal(scope):
            status, reason = refused
            # What follows on the connection may be meant for somebody else: it is read no further.
            await PlainTextResponse(reason, status, {"Connection": "close"})(scope, receive, send_guarded)
            return
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(receive)
        except TimeoutError:
            closing = {"Connection": "close"}
            await PlainTextResponse("What you sent came too slowly.", 408, closing)(scope, receive, send_guarded)
            return
        if body is None:
            await PlainTextResponse("What you sent is too large.", 413)(scope, receive, send_guarded)
            return
        messages = deque([{"type": "http.request", "body": body, "more_body": False}])

        async def received() -> Message:
            return messages.popleft() if messages else await receive()

        await self._app(scope, received, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        # A page elsewhere whose name is made to point here (DNS rebinding) has that name as its host.
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 400, "This is not the address of this page."
        if "content-length" in headers and "transfer-encoding" in headers:
            return 400, "It is not clear where this request ends."  # a proxy may have seen another end than we
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > MOST_BYTES:
            return 413, "What you sent is too large."
        if scope["method"] in ("GET", "HEAD"):
            return None
        own = {f"{urlsplit(self._origin).scheme}://{host}" for host in self._hosts}
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        # Browsers call the origin null where no referrer is sent, and then say in the other header what it is.
        unknown = origin == "null" and site is None and self._trustworthy
        foreign = origin not in (None, "null") and origin not in own
        if foreign or unknown or site not in (None, "same-origin"):
            return 403, "This was sent by another page."
        return None


async def _body(receive: Receive) -> bytes | None:
    """All that is sent; None where it is more than may be."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the browser has gone
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _headers(nonce: str) -> dict[str, str]:
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }


def form_token(secret: str) -> str:
    """The token that a page's forms carry, derived from a cookie that pages elsewhere cannot read."""
    return sha256(f"form {secret}".encode()).hexdigest()


def same_token(secret: str, sent: str) -> bool:
    """Whether a form carries the token that belongs to the cookie."""
    return hmac.compare_digest(form_token(secret), sent.encode("ascii", "replace").decode())


class TokenTries:
    """Counts wrong tokens by address, so that nobody can try many.

    Addresses beyond `MOST_ADDRESSES` with a wrong token in the last minute are counted as one: whoever has so many can
    keep others from coming in meanwhile, but cannot try more tokens by it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, deque[float]] = {}
        """Times of wrong tokens; the address of the latest comes last."""
        self._others = deque[float](maxlen=TRIES)

    def allowed(self, address: str) -> bool:
        """Whether one more token may be tried from there."""
        times = self._times(address)
        while times and times[0] < self._clock() - WINDOW_S:
            times.popleft()
        return len(times) < TRIES

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        times = self._times(address)
        if times is not self._others:
            self._failed[_network(address)] = self._failed.pop(_network(address), times)
        times.append(self._clock())

    def right(self, address: str) -> None:
        """The token that was last counted was right."""
        if times := self._times(address):
            times.pop()

    def _times(self, address: str) -> deque[float]:
        """The times that count for an address; of one that is not known they are kept once a token fails."""
        while self._failed:
            oldest, times = next(iter(self._failed.items()))
            if times and times[-1] >= self._clock() - WINDOW_S:
                break
            del self._failed[oldest]
        new = self._others if len(self._failed) >= MOST_ADDRESSES else deque[float](maxlen=TRIES)
        return self._failed.get(_network(address), new)


def _network(address: str) -> str:
    """What one sender has of addresses: an IPv4 address, or of IPv6 the first half, as providers give out."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if isinstance(known, IPv6Address):
        return str(known.ipv4_mapped or int(known) >> 64)
    return address
