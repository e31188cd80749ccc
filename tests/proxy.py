"""TCP proxies before a real server: what outages, lost replies and overload look like from a client."""

import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Literal


class Proxy:
    """`with Proxy(host, port) as proxy:` forwards every connection to it from `proxy.endpoint`.

    `cut` closes what is open and refuses what comes; `mend` takes connections again at the same port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._port = 0
        self.connections = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "Proxy":
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def mend(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._listener, self._port = listener, listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            _close(listener)
        with self._lock:
            for connection in self._open:
                _close(connection)
            self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server is away: the client may come again
                _close(client)
                continue
            with self._lock:
                self._open |= {client, server}
                self.connections += 1
            for work, pair in ((self._requests, (client, server)), (self._forward, (server, client))):
                threading.Thread(target=work, args=pair, daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        self._forward(client, server)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        self._hang_up(source, sink)

    def _hang_up(self, *connections: socket.socket) -> None:
        with self._lock:
            self._open -= set(connections)
        for connection in connections:
            _close(connection)


Action = Literal["lost reply", "lost request", "503", "500", "late"]


@dataclass
class _Break:
    pattern: re.Pattern[str]
    action: Action
    left: int
    every: int
    seen: int = 0
    struck: int = 0


class HttpProxy(Proxy):
    """A proxy that reads requests and does to those that match what a bad network or a busy server would.

    lost reply     the server does it and the connection closes before the client hears of it
    lost request   the connection closes and the server hears nothing
    503, 500       answered by the proxy, the server hears nothing
    late           the client waits in vain; the request lands `late_seconds` after it was sent
    """

    def __init__(self, host: str, port: int, late_seconds: float = 2.0) -> None:
        super().__init__(host, port)
        self._late_seconds = late_seconds
        self._breaks: list[_Break] = []
        self.heads: list[str] = []
        """Request line and headers of each request that came."""
        self.holds, self.landed = threading.Semaphore(0), threading.Semaphore(0)
        """Released when a late request has come, and when it has been answered."""

    def break_next(self, pattern: str, action: Action, times: int = 1, every: int = 1) -> _Break:
        """Break `times` requests, each `every`-th whose "METHOD /path?query" matches; `.struck` counts them."""
        found = _Break(re.compile(pattern), action, times, every)
        self._breaks.append(found)
        return found

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        """One request after the other; after a broken one the connection ends."""
        with suppress(OSError), client.makefile("rb") as stream:
            while (request := _read_request(stream, client)) is not None:
                self.heads.append(request.partition(b"\r\n\r\n")[0].decode("latin-1"))
                action = self._action(request)
                if action is not None:
                    self._do(action, request, client)
                    break
                server.sendall(request)
        self._hang_up(client, server)

    def _action(self, request: bytes) -> Action | None:
        line = request.split(b"\r\n", 1)[0].decode("latin-1").rpartition(" ")[0]
        with self._lock:
            for one in self._breaks:
                if not one.left or not one.pattern.search(line):
                    continue
                one.seen += 1
                if one.seen % one.every == 0:
                    one.left -= 1
                    one.struck += 1
                    return one.action
        return None

    def _do(self, action: Action, request: bytes, client: socket.socket) -> None:
        if action in ("503", "500"):
            client.sendall(_refusal(action))
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
        elif action == "lost reply":
            self._ask(request)
        elif action == "late":
            self.holds.release()
            time.sleep(self._late_seconds)
            self._ask(request)
            self.landed.release()

    def _ask(self, request: bytes) -> None:
        """On a line of its own, until the server has answered."""
        with socket.create_connection(self._target) as server:
            server.sendall(request)
            server.recv(65536)


def _refusal(action: str) -> bytes:
    code, reason = {"503": ("ServiceUnavailable", "Service Unavailable"), "500": ("InternalError", "Error")}[action]
    body = f"<Error><Code>{code}</Code><Message>-</Message></Error>".encode()
    return f"HTTP/1.1 {action} {reason}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def _read_request(stream: BinaryIO, client: socket.socket) -> bytes | None:
    """Head and body; None at the end. Who waits for 100 Continue gets it here, so the server need not send it."""
    head, length, waits = b"", 0, False
    while True:
        line = stream.readline()
        if not line:
            return None
        name, _, value = line.partition(b":")
        if name.lower() == b"expect":
            waits = True
            continue
        if name.lower() == b"content-length":
            length = int(value)
        if name.lower() == b"transfer-encoding":
            raise OSError("chunked requests are not read")
        head += line
        if line == b"\r\n":
            break
    if waits:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    return head + stream.read(length)


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
