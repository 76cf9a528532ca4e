"""Download: get a file of known SHA-256 over https, with limits of time and size."""

from __future__ import annotations

import hashlib
import http.client
import queue
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError

from nnxp.errors import DataUnavailableError

_TIMEOUT = 10  # seconds without a response
_DEADLINE = 300  # seconds for the whole file
_MAX_BYTES = 16 << 20  # MNIST's largest file has 9.9 MB

_REASONS: list[tuple[type[Exception], str]] = [
    (ssl.SSLCertVerificationError, "its certificate is not trusted; see $SSL_CERT_FILE"),
    (ssl.SSLError, "no encrypted connection"),
    (socket.gaierror, "the host is not found; is this machine offline?"),
    (ConnectionRefusedError, "the connection was refused"),
    (ConnectionError, "the connection was broken"),
    (TimeoutError, f"no answer for {_TIMEOUT} s"),
    (http.client.IncompleteRead, "the file is truncated"),
    (http.client.HTTPException, "the answer is not HTTP"),
]


def download(url: str, sha256: str) -> bytes:
    """Return the contents of a file on the web.

    Proxies are taken from the environment, trusted certificates from Python's `ssl`.

    Raises
    ------
    DataUnavailableError
        If the URL or a redirect is not https; if there is no response; or if the file is not
        complete in time, is too large, or has another SHA-256.
    """
    results: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            results.put(_read(url))
        except Exception as error:  # noqa: BLE001 (raised below)
            results.put(error)

    # A thread can be abandoned: a server that sends its headers byte by byte never times out.
    threading.Thread(target=read, daemon=True).start()
    try:
        result = results.get(timeout=_DEADLINE)
    except queue.Empty:
        result = _too_slow()
    if isinstance(result, Exception):
        proxied = urllib.request.getproxies().get("https")
        direct = urllib.request.proxy_bypass(urllib.parse.urlsplit(url).hostname or "")
        proxy = ", through the proxy for https" if proxied and not direct else ""
        # Shortened, since a server may send a reason of any length.
        raise DataUnavailableError(f"{url}{proxy}: {_reason(result):.300}") from result
    if hashlib.sha256(result).hexdigest() != sha256:
        raise DataUnavailableError(f"{url} has another SHA-256 than published")
    return result


def _read(url: str) -> bytes:
    end = time.monotonic() + _DEADLINE
    _require_https(url)
    data = bytearray()
    with urllib.request.build_opener(_HttpsRedirects).open(url, timeout=_TIMEOUT) as response:
        while chunk := response.read1(1 << 16):
            data += chunk
            if len(data) > _MAX_BYTES:
                raise DataUnavailableError(f"it has more than {_MAX_BYTES:,} bytes")
            if time.monotonic() > end:
                raise _too_slow()
        if response.length:
            raise http.client.IncompleteRead(bytes(data), response.length)
    return bytes(data)


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # the body is not needed, and may be endless
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https":  # the error omits the rest, which may hold a password or a token
        raise DataUnavailableError(f"{parts.scheme}://{parts.hostname or ''} is not https")


def _too_slow() -> DataUnavailableError:
    return DataUnavailableError(f"it was not complete after {_DEADLINE} s")


def _reason(error: Exception) -> str:
    """Return a short reason why a download failed."""
    if isinstance(error, HTTPError):
        error.close()
        return f"the server answered {error.code} ({error.reason})"
    cause = error.reason if isinstance(error, URLError) else error
    for kind, reason in _REASONS:
        if isinstance(cause, kind):
            return f"{reason} ({cause})"
    return str(cause)
