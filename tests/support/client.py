"""A client that shows which bytes came, and how the response ended."""

import json
import select
import socket
import struct
import time
from dataclasses import dataclass, field


@dataclass
class Response:
    status: int
    reason: bytes
    version: bytes
    headers: list
    body: bytes = b""
    # "whole": ended as its framing says. "closed": ended with the connection, properly. "cut": visibly incomplete.
    # "reset": the connection was reset.
    ending: str = ""
    # Each piece of the body as it arrived: (seconds since the request, bytes).
    pieces: list = field(default_factory=list)
    head: bytes = b""

    @property
    def broken(self):
        return self.ending in ("cut", "reset")

    def all(self, name):
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]

    def header(self, name):
        """The one value of a header, None if absent. Twice is a fault."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def text(self):
        return self.body.decode()

    def json(self):
        assert self.status == 200, f"{self.status} {self.reason!r}: {self.body[:500]!r}"
        return json.loads(self.body)


class ConnectionEnded(Exception):
    """The server ended the connection before a whole head."""

    def __init__(self, received, reset):
        super().__init__(f"connection {'reset' if reset else 'closed'} after {received!r}")
        self.received = received
        self.reset = reset


class Connection:
    """One TCP connection. Small receive buffers make a slow client."""

    def __init__(self, port, timeout=20, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.ended = None
        self.began = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def abort(self):
        """Resets the connection, as a client that crashes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data):
        self.began = time.monotonic()
        self.socket.sendall(data)

    def request(self, method, path, headers=(), body=b"", version="1.1"):
        """Sends a request; a body gets Content-Length unless the headers frame it."""
        lines = [f"{method} {path} HTTP/{version}".encode()]
        fields = [(k, v) for k, v in (headers.items() if isinstance(headers, dict) else headers)]
        names = {k.lower() for k, _ in fields}
        if "host" not in names:
            fields.insert(0, ("Host", "localhost"))
        if (body or method in ("POST", "PUT")) and not names & {"content-length", "transfer-encoding"}:
            fields.append(("Content-Length", str(len(body))))
        for name, value in fields:
            lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("latin-1")))
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def _more(self):
        """Receives once; False at the end."""
        if self.ended:
            return False
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            self.ended = "reset"
            return False
        if not data:
            self.ended = "closed"
            return False
        self.buffer += data
        return True

    def read_head(self):
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                raise ConnectionEnded(self.buffer, self.ended == "reset")
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        status, _, reason = rest.partition(b" ")
        headers = []
        for line in lines:
            name, _, value = line.partition(b":")
            headers.append((name, value.strip(b" \t")))
        return Response(int(status), reason, version, headers, head=head + b"\r\n\r\n")

    def response(self, method="GET"):
        """Reads a whole response, skipping 100 Continue."""
        response = self.read_head()
        while response.status in (100, 103):
            response = self.read_head()
        self.read_body(response, method)
        return response

    def read_body(self, response, method="GET"):
        length, coding = response.header("Content-Length"), response.header("Transfer-Encoding")
        assert length is None or coding is None, "both Content-Length and Transfer-Encoding"
        if method == "HEAD" or response.status in (204, 304):
            response.ending = "whole"
        elif coding:
            self._read_chunks(response)
        elif length is not None:
            self._read_exactly(response, int(length))
        else:
            while True:
                self._take(response, len(self.buffer))
                if not self._more():
                    break
            response.ending = "reset" if self.ended == "reset" else "closed"

    def _take(self, response, count):
        if count:
            response.pieces.append((time.monotonic() - self.began, self.buffer[:count]))
            response.body += self.buffer[:count]
            self.buffer = self.buffer[count:]

    def _read_exactly(self, response, length):
        pieces, missing = [], length
        while True:
            taken, self.buffer = self.buffer[:missing], self.buffer[missing:]
            if taken:
                pieces.append(taken)
                response.pieces.append((time.monotonic() - self.began, taken))
                missing -= len(taken)
            if not missing or not self._more():
                break
        response.body = b"".join(pieces)
        response.ending = "whole" if not missing else "reset" if self.ended == "reset" else "cut"

    def _read_chunks(self, response):
        pieces = []
        response.ending = "cut"
        while True:
            while b"\r\n" not in self.buffer:
                if not self._more():
                    response.ending = "reset" if self.ended == "reset" else "cut"
                    response.body = b"".join(pieces)
                    return
            size, rest = self.buffer.split(b"\r\n", 1)
            length = int(size.split(b";")[0], 16)
            while len(rest) < length + 2:
                if not self._more():
                    pieces.append(rest[:length])
                    response.ending = "reset" if self.ended == "reset" else "cut"
                    response.body = b"".join(pieces)
                    return
                rest = self.buffer.split(b"\r\n", 1)[1]
            assert rest[length : length + 2] == b"\r\n", "a chunk does not end with CRLF"
            self.buffer = rest[length + 2 :]
            if not length:
                response.ending = "whole"
                response.body = b"".join(pieces)
                return
            pieces.append(rest[:length])
            response.pieces.append((time.monotonic() - self.began, rest[:length]))

    def read_some(self, count):
        """Up to `count` raw bytes, b"" at the end."""
        if not self.buffer and not self._more():
            return b""
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def rest(self):
        """All that still comes; `ended` stays None if the server does not end the connection."""
        try:
            while self._more():
                pass
        except TimeoutError:
            pass
        return self.buffer

    def silent(self, seconds):
        """Whether nothing arrives for so long."""
        return not self.buffer and not select.select([self.socket], [], [], seconds)[0]

    def wait_end(self):
        """Reads and drops everything until the server ends the connection: "closed" or "reset"."""
        while self._more():
            self.buffer = b""
        return self.ended


def exchange(port, method, path, headers=(), body=b"", version="1.1", timeout=20):
    """One request on a connection of its own."""
    with Connection(port, timeout) as connection:
        connection.request(method, path, headers, body, version)
        return connection.response(method)


def chunked(*blocks):
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks if block) + b"0\r\n\r\n"


def until(condition, timeout=5, every=0.01):
    """Waits until the condition gives something true, and returns it; what it gave last, if it never did."""
    deadline = time.monotonic() + timeout
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(every)
    return found
