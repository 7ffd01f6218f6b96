"""Requests of HTTP/2 as clients do not send them: RFC 9113 sections 8.1.1 to 8.3. The application sees what is one, or nothing."""

import json
import socket
import ssl

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset

from support.client import until
from support.server import Mount

pytestmark = pytest.mark.only("nginx", "nginx-unbuffered", "apache", "apache-worker")

POST = {":method": "POST", ":scheme": "https", ":authority": "x", ":path": "/read"}
OK, REFUSED, RESET = "200", "400", "reset"


def fields(*more, **pseudo):
    """The usual request, with pseudo-headers replaced or (None) left out, and headers."""
    own = {f":{name}": value for name, value in pseudo.items()}
    return [(name, value) for name, value in {**POST, **own}.items() if value is not None] + list(more)


# name: (headers, body, answer of nginx, answer of Apache, what environ has and does not have).
CASES = {
    "a body": (fields(), [b"hello"], OK, OK, {"HTTP_HOST": "x", "CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": None}),
    "a body in pieces": (fields(), [b"he", b"l", b"", b"lo"], OK, OK, {}),
    "a body of 60,000 bytes": (fields(), [b"x" * 15_000] * 4, OK, OK, {}),
    "no body": (fields(), [], OK, OK, {"CONTENT_LENGTH": None}),
    "an empty body": (fields(), [b""], OK, OK, {}),
    "its length": (fields(("content-length", "5")), [b"hello"], OK, OK, {"CONTENT_LENGTH": "5"}),
    "less than its length": (fields(("content-length", "9")), [b"hello"], REFUSED, RESET, None),
    "more than its length": (fields(("content-length", "3")), [b"hello"], REFUSED, RESET, None),
    "no body of a length": (fields(("content-length", "5")), [], REFUSED, RESET, None),
    "a length with a sign": (fields(("content-length", "+5")), [b"hello"], REFUSED, RESET, None),
    "a length twice": (fields(("content-length", "5"), ("content-length", "5")), [b"hello"], REFUSED, RESET, None),
    "two lengths": (fields(("content-length", "5"), ("content-length", "6")), [b"hello"], REFUSED, RESET, None),
    "a transfer coding": (fields(("transfer-encoding", "chunked")), [b"0\r\n\r\n"], REFUSED, RESET, None),
    "a header of connections": (fields(("connection", "close")), [b"hello"], REFUSED, RESET, None),
    "an old header of connections": (fields(("keep-alive", "5")), [b"hello"], REFUSED, RESET, None),
    "an upgrade": (fields(("upgrade", "websocket")), [b"hello"], REFUSED, RESET, None),
    "TE of a coding": (fields(("te", "gzip")), [b"hello"], REFUSED, RESET, None),
    "TE of trailers": (fields(("te", "trailers")), [b"hello"], OK, OK, {"HTTP_TE": "trailers"}),
    "a name in capitals": (fields(("X-Upper", "a")), [b"hello"], RESET, RESET, None),
    "a name with a space": (fields(("x a", "b")), [b"hello"], RESET, RESET, None),
    "a name with a colon": (fields(("x:a", "b")), [b"hello"], RESET, RESET, None),
    "a name with CRLF": (fields(("x-a: b\r\nx-c", "d")), [b"hello"], RESET, RESET, None),
    "a value with CRLF": (fields(("x-a", "a\r\nx-b: c")), [b"hello"], RESET, RESET, None),
    "a value with LF": (fields(("x-a", "a\nx-b: c")), [b"hello"], RESET, RESET, None),
    "a value with NUL": (fields(("x-a", "a\0b")), [b"hello"], RESET, RESET, None),
    "a value that smuggles": (fields(("x-a", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")), [b"hello"], RESET, RESET, None),
    "two types": (fields(("content-type", "a/b"), ("content-type", "c/d")), [b"hello"], REFUSED, REFUSED, None),
    "two cookies": (fields(("cookie", "a=1"), ("cookie", "b=2")), [b"hello"], OK, OK, {"HTTP_COOKIE": "a=1; b=2"}),
    "a host beside the authority": (fields(("host", "y")), [b"hello"], REFUSED, OK, {"HTTP_HOST": "x"}),
    "an underscore": (fields(("x_user", "forged"), ("x-user", "real")), [b"hello"], OK, OK, {"HTTP_X_USER": "real"}),
    "Proxy": (fields(("proxy", "http://evil/")), [b"hello"], OK, OK, {"HTTP_PROXY": None}),
    "no path": (fields(path=None), [b"hello"], REFUSED, RESET, None),
    "an empty path": (fields(path=""), [b"hello"], REFUSED, RESET, None),
    "a path without a slash": (fields(path="read"), [b"hello"], REFUSED, RESET, None),
    "a path with a host": (fields(path="http://y/read"), [b"hello"], REFUSED, RESET, None),
    "a path with a version": (fields(path="/read HTTP/1.1"), [b"hello"], REFUSED, RESET, None),
    "a path with CRLF": (fields(path="/read HTTP/1.1\r\nx-a: b\r\n\r\n"), [b"hello"], RESET, RESET, None),
    "a star": (fields(path="*"), [b"hello"], REFUSED, RESET, None),
    "two paths": (fields((":path", "/two")), [b"hello"], REFUSED, RESET, None),
    "no scheme": (fields(scheme=None), [b"hello"], REFUSED, RESET, None),
    "no authority": (fields(authority=None), [b"hello"], REFUSED, RESET, None),
    "an authority with CRLF": (fields(authority="x\r\nx-a: b"), [b"hello"], RESET, RESET, None),
    "a method with a space": (fields(method="GET /x HTTP/1.1"), [b"hello"], REFUSED, RESET, None),
    "a method with CRLF": (fields(method="GET\r\n"), [b"hello"], RESET, RESET, None),
    "CONNECT": ([(":method", "CONNECT"), (":authority", "x:443")], [], REFUSED, "405", None),
    "a pseudo-header nobody knows": (fields((":x", "b")), [b"hello"], REFUSED, RESET, None),
}


@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_application_sees_requests_of_http_2_as_they_are_or_not_at_all(serve, when):
    """The body comes with the headers, or when the application may have begun."""
    server = serve(Mount("recorder:application"), tls=True)
    complaints = []
    for name, (headers, body, nginx, apache, environ) in CASES.items():
        talk = Talk(server, headers, body, when == "later")
        expected = nginx if server.host == "nginx" else apache
        if talk.answer != expected:
            complaints.append(f"{name}: {talk.answer}, expected {expected}")
        if expected == OK and talk.content != b"hello":
            complaints.append(f"{name}: the response is {talk.content!r}")
        seen = talk.seen(expected)
        if len(seen) != (expected == OK):
            complaints.append(f"{name}: the application saw {seen}")
        for record in seen:
            wanted = {"REQUEST_METHOD": "POST", "REQUEST_URI": "/read", "body": b"".join(body).decode(), **(environ or {})}
            complaints += [f"{name}: {key} is {record.get(key)!r}" for key, value in wanted.items() if record.get(key) != value]
    server.allow_log("client sent|client prematurely|client intended|AH[0-9]+|SSL_|shutdown|http2")
    # nginx logs a client's line ends as they are.
    server.allow_log("^x-a: b|^Host: x|^GET /smuggled|^\r?$|while reading client request headers")
    assert not complaints, "\n".join(complaints)


class Talk:
    """One request on a connection of its own."""

    def __init__(self, server, headers, body, later):
        context = ssl.create_default_context(cafile=server.stage.certificates / "ca.pem")
        context.set_alpn_protocols(["h2"])
        self.answer, self.content = None, b""
        self.connection = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        raw = socket.create_connection(("127.0.0.1", server.port), 10)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(raw, server_hostname="localhost") as self.socket:
            self.notes = server.stage.root / "notes" / f"connection-{self.socket.getsockname()[1]}"
            self.notes.unlink(missing_ok=True)
            self.connection.initiate_connection()
            self.connection.send_headers(1, headers, end_stream=not body)
            if later and body:
                self.flush()
                until(self.notes.exists, 0.02)
            for number, piece in enumerate(body, 1):
                self.connection.send_data(1, piece, end_stream=number == len(body))
            self.flush()
            self.listen()

    def flush(self):
        try:
            self.socket.sendall(self.connection.data_to_send())
        except OSError:
            pass

    def listen(self):
        status = None
        while self.answer is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                self.answer = "closed"
                return
            for event in self.connection.receive_data(data):
                if isinstance(event, ResponseReceived):
                    status = dict((bytes(name), bytes(value)) for name, value in event.headers)[b":status"].decode()
                elif isinstance(event, DataReceived):
                    self.content += event.data
                elif isinstance(event, StreamEnded):
                    self.answer = status
                elif isinstance(event, (StreamReset, ConnectionTerminated)):
                    self.answer = self.answer or RESET
            self.flush()

    def seen(self, expected):
        """What the application was given as a whole; one that was told its body is broken has seen none."""
        if expected == OK:
            until(self.notes.exists, 2)
        lines = self.notes.read_bytes().split(b"\n")[:-1] if self.notes.exists() else []
        return [record for record in map(json.loads, lines) if record["body"] is not False]
