"""Reads HTTP/1.1 requests to the letter of RFC 9112, and refuses the rest: what servers must not understand otherwise.

Where a server is lenient, as the RFC lets it be or for old clients' sake, a case names the leniency; no other is taken.
"""

import re
from dataclasses import dataclass, field

LENIENCIES = {
    # RFC 9112 section 2.2: a recipient MAY recognize a single LF as a line terminator.
    "bare-lf",
    # Several CR before the LF.
    "several-cr",
    # Section 3: MAY parse the request line on white space.
    "loose-request-line",
    # A request line of GET and a target alone.
    "http/0.9",
    # Any minor version of HTTP/1 is taken for 1.1 (section 2.3), also of two digits.
    "long-version",
    # RFC 3986 has no bytes above 127, quotes, braces and so on in a target; they are taken literally.
    "raw-target",
    # Other schemes than http and https.
    "other-scheme",
    # The host of a target, or Host, holds more than a host.
    "odd-host",
    # Host is replaced by the host of the target before anybody counts (section 3.2.2).
    "host-of-target",
    # Section 5.2: a server MUST reject obs-fold or replace it by spaces.
    "obs-fold",
    # A header line whose name is none is left out.
    "skips-bad-names",
    # A header line without a colon is a name without a value.
    "no-colon",
    # RFC 9110 section 5.5: other control characters MAY be retained in safe contexts.
    "control-bytes",
    # Section 6.3: Transfer-Encoding overrides Content-Length, and the connection is closed.
    "chunked-over-length",
    # Anything may follow the semicolon or white space after a chunk's size (section 7.1.1).
    "loose-chunk-extension",
    # Trailers are not looked at.
    "loose-trailers",
}

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
VALUE = rb"[\t \x21-\x7e\x80-\xff]*"
TARGET = rb"[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]+"
QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
EXTENSION = rb"(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + QUOTED + rb"))?)*"
HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?"


class Refused(Exception):
    pass


class Incomplete(Exception):
    pass


@dataclass
class Request:
    method: str
    # Without scheme and host.
    target: str
    version: str
    # In order, lower-case names.
    headers: list
    authority: str | None = None
    body: str = ""
    closes: bool = False

    def all(self, name):
        return [value for key, value in self.headers if key == name]


@dataclass
class Parsed:
    requests: list = field(default_factory=list)
    # "open", "closes", "incomplete", or why the next request is none.
    end: str = "open"


def parse(data, allowed=frozenset()):
    """All requests of a connection's bytes."""
    assert allowed <= LENIENCIES, allowed - LENIENCIES
    reader, parsed = Reader(data, allowed), Parsed()
    try:
        while reader.more():
            parsed.requests.append(request := reader.request())
            if request.closes:
                parsed.end = "closes"
                break
    except Incomplete:
        parsed.end = "incomplete"
    except Refused as refused:
        parsed.end = str(refused)
    return parsed


class Reader:
    def __init__(self, data, allowed):
        self.data = data
        self.position = 0
        self.allowed = allowed

    def more(self):
        # Section 2.2: empty lines before a request are ignored.
        while self.data.startswith(b"\r\n", self.position) or "bare-lf" in self.allowed and self.data.startswith(b"\n", self.position):
            self.line()
        return self.position < len(self.data)

    def line(self):
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Incomplete
        line, self.position = self.data[self.position : end], end + 1
        if line.endswith(b"\r"):
            line = line.rstrip(b"\r") if "several-cr" in self.allowed else line[:-1]
        elif "bare-lf" not in self.allowed:
            raise Refused("a line ends with LF alone")
        if b"\r" in line:
            raise Refused("CR within a line")
        return line

    def take(self, count):
        if len(self.data) - self.position < count:
            raise Incomplete
        taken = self.data[self.position : self.position + count]
        self.position += count
        return taken

    def request(self):
        line = self.line()
        words = line.split() if "loose-request-line" in self.allowed else line.split(b" ")
        if len(words) == 2 and "http/0.9" in self.allowed and words[0] == b"GET":
            return Request("GET", words[1].decode("latin-1"), "HTTP/0.9", [], closes=True)
        if len(words) != 3:
            raise Refused("the request line has not three words")
        method, target, version = words
        if not re.fullmatch(TOKEN, method):
            raise Refused("the method is no token")
        if not re.fullmatch(TARGET if "raw-target" not in self.allowed else rb"[^\x00-\x20\x7f]+", target):
            raise Refused("the target has other characters")
        if not re.fullmatch(rb"HTTP/1\.[0-9]+" if "long-version" in self.allowed else rb"HTTP/1\.[0-9]", version):
            raise Refused("another version")
        version = version.decode()
        authority, target = self.target(method, target)
        request = Request(method.decode("latin-1"), target.decode("latin-1"), version, self.fields(), authority)
        self.check_host(request)
        self.body(request)
        tokens = {token.strip().lower() for value in request.all("connection") for token in value.split(",")}
        request.closes |= "close" in tokens or version == "HTTP/1.0" and "keep-alive" not in tokens
        return request

    def target(self, method, target):
        if target.startswith(b"/") or target == b"*" and method == b"OPTIONS":
            return None, target
        if method == b"CONNECT" and re.fullmatch(HOST, target):
            return target.decode(), b""
        match = re.fullmatch(rb"https?://([^/?]+)(.*)" if "other-scheme" not in self.allowed else rb"[a-z]+://([^/?]+)(.*)", target, re.IGNORECASE)
        if not match or not re.fullmatch(HOST if "odd-host" not in self.allowed else rb".*", match[1]):
            raise Refused("the target has none of the four forms")
        return match[1].decode("latin-1"), match[2] if match[2].startswith(b"/") else b"/" + match[2]

    def fields(self):
        headers = []
        while line := self.line():
            if line[:1] in (b" ", b"\t"):
                if "obs-fold" not in self.allowed or not headers:
                    raise Refused("a folded line")
                headers[-1][1] = (headers[-1][1] + " " + line.strip(b" \t").decode("latin-1")).strip()
                continue
            name, colon, value = line.partition(b":")
            colon = colon or "no-colon" in self.allowed
            if not colon or not re.fullmatch(TOKEN, name):
                if "skips-bad-names" in self.allowed:
                    continue
                raise Refused("a header's name is no token")
            value = value.strip(b" \t")
            if not re.fullmatch(VALUE if "control-bytes" not in self.allowed else rb"[^\x00\r\n]*", value):
                raise Refused("a header's value has control characters")
            headers.append([name.decode().lower(), value.decode("latin-1")])
        return headers

    def check_host(self, request):
        hosts = request.all("host")
        if "host-of-target" in self.allowed and request.authority:
            return
        if len(hosts) > 1 or not hosts and request.version != "HTTP/1.0":
            raise Refused(f"{len(hosts)} Host headers")
        if "odd-host" not in self.allowed and not all(re.fullmatch(HOST, host.encode("latin-1")) for host in hosts):
            raise Refused("Host is none")

    def body(self, request):
        lengths, codings = request.all("content-length"), request.all("transfer-encoding")
        if codings:
            if request.version == "HTTP/1.0":
                raise Refused("Transfer-Encoding in HTTP/1.0")
            if len(codings) != 1 or codings[0].lower() != "chunked":
                raise Refused("another Transfer-Encoding than chunked")
            if lengths:
                if "chunked-over-length" not in self.allowed:
                    raise Refused("Content-Length beside Transfer-Encoding")
                request.closes = True
            request.body = self.chunks().decode("latin-1")
            return
        if len(lengths) > 1:
            raise Refused("Content-Length comes several times")
        if lengths:
            if not re.fullmatch(r"[0-9]+", lengths[0]) or int(lengths[0]) > 2**63 - 1:
                raise Refused("Content-Length is no number")
            request.body = self.take(int(lengths[0])).decode("latin-1")

    def chunks(self):
        body = b""
        while True:
            size, extension = re.match(rb"([0-9A-Fa-f]*)(.*)", self.line(), re.DOTALL).groups()
            if not size or len(size.lstrip(b"0")) > 15:
                raise Refused("a chunk's size is no number")
            if "loose-chunk-extension" in self.allowed:
                if extension.lstrip(b" \t")[:1] not in (b"", b";"):
                    raise Refused("a chunk's extension is none")
            elif not re.fullmatch(EXTENSION, extension):
                raise Refused("a chunk's extension is none")
            if not int(size, 16):
                break
            body += self.take(int(size, 16))
            if "bare-lf" in self.allowed and self.data.startswith(b"\n", self.position):
                self.take(1)
            elif self.take(2) != b"\r\n":
                raise Refused("a chunk is longer than its size")
        if "loose-trailers" in self.allowed:
            while self.line():
                pass
        else:
            self.fields()
        return body
