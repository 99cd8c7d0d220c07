"""A thin client of the Kubernetes API: requests and watches over http.client, in the thread that asks.

http.client does the framing (RFC 9112) and is in the standard library: 32 KiB of memory beside what asyncio has
loaded already, against 36 MiB of the `kubernetes` package. A failure is one of three: `Refused` (the server said so),
`Unreachable` (no or half an answer), `Garbage` (an answer that is not the API's).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from netstack.core.errors import BadConfig
from netstack.source import depth
from netstack.source.credentials import Access, Credentials

CONNECT_S = 10.0
ANSWER_S = 30.0
"""Longest silence within one answer, seconds."""
BODY_MAX = 16 << 20
"""Longest answer that is read, bytes: what a daemon can take in within its memory. A page of 250 pods is under 5 MB."""
LINE_MAX = BODY_MAX
"""Longest event of a watch, bytes. etcd holds objects of up to 1.5 MB, and a "<" in it is six characters of JSON."""
RETRY_MAX_S = 60.0
"""Longest pause that a server may ask for. The API server asks for one second; a balancer before it may say an hour and
mean its repair."""
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiFailure(Exception):
    """A request did not succeed; its text is for `netstack status`. `retry_after_s`: what the server asked for."""

    retry_after_s = 0.0


class Refused(ApiFailure):
    """The server answered with an error: an HTTP status, or a watch event of type ERROR."""

    def __init__(self, code: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code} {http.client.responses.get(code, 'error')}{': ' if message else ''}{message}")
        self.code = code
        self.retry_after_s = retry_after_s


class Unreachable(ApiFailure):
    """No answer, or only the beginning of one."""


class Garbage(ApiFailure):
    """An answer that the API does not give."""


class TooLarge(Garbage):
    """An answer that is longer than what is read."""


class _Connection(http.client.HTTPConnection):
    """HTTPS whose peer may die without a word: the kernel asks after it and gives up in 35 s."""

    def __init__(self, access: Access) -> None:
        super().__init__(access.host, access.port, timeout=ANSWER_S)
        self._access = access

    def connect(self) -> None:
        sock = socket.create_connection((self.host, self.port), CONNECT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 35_000)
            self.sock = self._access.tls.wrap_socket(sock, server_hostname=self._access.server_name)
            self.sock.settimeout(self.timeout)
        except BaseException:
            sock.close()
            raise


class Client:
    """One connection, kept open between requests. For one thread; only `abort` may come from another."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._connection: _Connection | None = None
        self._access: Access | None = None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._whole("GET", path, query, None, "")

    def send(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: str
    ) -> dict[str, Any]:
        """POST, PUT, PATCH or DELETE; the answer's object."""
        return self._whole(method, path, query, body, content_type)

    def lines(self, path: str, query: Mapping[str, str], silence_s: float) -> Iterator[bytes]:
        """The lines of a watch as they come, b"" once when it is open, until the server ends it or is silent for so
        long. Half a line at the end is no line."""
        self.close()  # its connection is its own: no request waits behind it
        with self._failures():
            response = self._request("GET", path, query, None, "")
            self._judge(response, None)
            yield b""
            if self._connection is not None and self._connection.sock is not None:
                self._connection.sock.settimeout(silence_s)
            try:
                while (line := response.readline(LINE_MAX)).endswith(b"\n"):
                    yield line
            except TimeoutError as error:  # nothing happened: whether anybody is still there, the next request shows
                if error.errno is not None:  # the kernel's own ETIMEDOUT: nobody is
                    raise
                self.close()
                return
            if len(line) == LINE_MAX:
                raise Garbage(f"an event has more than {LINE_MAX} bytes")
            if line:
                raise Unreachable("the connection was cut within an event")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """From another thread: whatever waits on the connection ends now."""
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _whole(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str
    ) -> dict[str, Any]:
        with self._failures():
            response = self._request(method, path, query or {}, body, content_type)
            data = response.read(BODY_MAX)
            if len(data) == BODY_MAX:
                raise TooLarge(f"the answer has {BODY_MAX} bytes or more")
            if response.length:
                raise Unreachable("the connection was cut within an answer")
            self._judge(response, data)
            return _object(data)

    def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> http.client.HTTPResponse:
        access = self._credentials.access()
        if access is not self._access:  # rotated
            self.close()
            self._access = access
        headers = {"Accept": "application/json", "User-Agent": "netstack"}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        if body is not None:
            headers["Content-Type"] = content_type
        url = access.prefix + path + (f"?{urlencode(query)}" if query else "")
        text = json.dumps(body).encode() if body is not None else None
        kept = self._connection is not None
        while True:
            if self._connection is None:
                self._connection = _Connection(access)
            try:
                self._connection.request(method, url, text, headers)
                return self._connection.getresponse()
            except (ConnectionError, http.client.RemoteDisconnected):
                self.close()
                if not kept:  # the server may close a connection that was idle: only a new one says that it is away
                    raise
                kept = False

    def _judge(self, response: http.client.HTTPResponse, data: bytes | None) -> None:
        if 200 <= response.status < 300:
            return
        data = response.read(1 << 16) if data is None else data
        try:
            message = str(json.loads(data).get("message", ""))
        except (ValueError, AttributeError):
            message = ""
        if response.status == 401:
            self._credentials.forget()
            message = f"the credentials in {self._credentials.name} are expired, revoked or unknown"
            if self._credentials.flaw:
                message += f", and those that are there now are not usable: {self._credentials.flaw}"
        wait = response.headers.get("Retry-After", "")
        raise Refused(response.status, message, min(float(wait), RETRY_MAX_S) if wait.isdecimal() else 0.0)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """What the libraries raise, in this module's words. The connection does not outlive a failure."""
        try:
            yield
        except Refused:
            raise
        except (ApiFailure, GeneratorExit):
            self.close()
            raise
        except BadConfig as error:
            self.close()
            raise Unreachable(f"no usable credentials: {error}") from error
        except TimeoutError as error:
            self.close()
            raise Unreachable("no answer in time") from error
        except http.client.IncompleteRead as error:
            self.close()
            raise Unreachable("the connection was cut within an answer") from error
        except (OSError, http.client.RemoteDisconnected) as error:
            self.close()
            raise Unreachable(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
        except (http.client.HTTPException, ValueError, AttributeError) as error:
            # AttributeError: http.client on a connection that `abort` has ended
            self.close()
            raise Garbage(f"no HTTP answer: {type(error).__name__} {error}"[:200]) from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        decoded = depth.load(data)
    except ValueError as error:
        raise Garbage(f"the answer is not JSON: {data[:60]!r}") from error
    if not isinstance(decoded, dict):
        raise Garbage(f"the answer is no object: {data[:60]!r}")
    return decoded
