"""What an application must not do, or what goes wrong in it."""

import sys

from . import behaviour
from .record import Body, note, query

TEXT = [("Content-Type", "text/plain")]


@behaviour
def raises(environ, start_response):
    raise RuntimeError("raised at once: käse")


@behaviour
def raises_chained(environ, start_response):
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("the second") from error


@behaviour
def raises_after_start(environ, start_response):
    start_response("200 OK", TEXT)
    raise RuntimeError("after start_response")


@behaviour
def raises_before_first_block(environ, start_response):
    start_response("200 OK", TEXT)
    yield b""
    raise RuntimeError("before the first block")


@behaviour
def raises_after_block(environ, start_response):
    """No Content-Length: HTTP/1.1 chunks, HTTP/1.0 until the connection ends."""
    start_response("200 OK", TEXT)
    yield b"begun"
    raise RuntimeError("after the first block")


@behaviour
def raises_within_length(environ, start_response):
    start_response("200 OK", [*TEXT, ("Content-Length", "100")])
    yield b"begun"
    raise RuntimeError("after the first block")


@behaviour
def raises_in_close(environ, start_response):
    class Failing(Body):
        def close(self):
            super().close()
            raise RuntimeError("from close")

    start_response("200 OK", TEXT)
    return Failing(environ, [b"whole"])


@behaviour
def raises_and_closes(environ, start_response):
    def blocks():
        yield b"begun"
        raise RuntimeError("after the first block")

    start_response("200 OK", TEXT)
    return Body(environ, blocks())


@behaviour
def raises_in_iter(environ, start_response):
    class Blocks:
        def __iter__(self):
            raise RuntimeError("from __iter__")

        def close(self):
            note(environ, "close")

    start_response("200 OK", TEXT)
    return Blocks()


@behaviour
def gives(environ, start_response):
    """Things that are no block and no iterable of blocks: ?what=."""
    what = query(environ, "what")
    start_response("200 OK", TEXT)
    return {
        "str": lambda: ["text"],
        "str_second": lambda: (block for block in [b"bytes ", "text"]),
        "bytearray": lambda: [bytearray(b"x")],
        "memoryview": lambda: [memoryview(b"x")],
        "int": lambda: [1],
        "none": lambda: [None],
        "none_itself": lambda: None,
        "str_itself": lambda: "text",
        "int_itself": lambda: 5,
    }[what]()


@behaviour
def gives_bytes_itself(environ, start_response):
    """bytes is iterable, by numbers."""
    start_response("200 OK", TEXT)
    return b"bytes"


@behaviour
def never_starts(environ, start_response):
    return [b"no head"]


@behaviour
def never_starts_empty(environ, start_response):
    return []


@behaviour
def starts_twice(environ, start_response):
    start_response("200 OK", TEXT)
    start_response("200 OK", TEXT)
    return [b"twice"]


@behaviour
def bad_head(environ, start_response):
    """Heads that are none: ?what=."""
    status, headers = {
        "no_digits": ("OK", TEXT),
        "two_digits": ("20 OK", TEXT),
        "four_digits": ("2000 OK", TEXT),
        "no_space": ("200OK", TEXT),
        "early": ("100 Continue", TEXT),
        "high": ("999 What", TEXT),
        "bytes": (b"200 OK", TEXT),
        "none": (None, TEXT),
        "crlf_reason": ("200 OK\r\nX-Injected: yes", TEXT),
        "unicode_reason": ("200 \u2603", TEXT),
        "crlf_value": ("200 OK", [("X-A", "a\r\nX-Injected: yes")]),
        "lf_value": ("200 OK", [("X-A", "a\nX-Injected: yes")]),
        "cr_value": ("200 OK", [("X-A", "a\rX-Injected: yes")]),
        "nul_value": ("200 OK", [("X-A", "a\0b")]),
        "crlf_name": ("200 OK", [("X-A\r\nX-Injected", "yes")]),
        "space_name": ("200 OK", [("X A", "a")]),
        "colon_name": ("200 OK", [("X-A:", "a")]),
        "empty_name": ("200 OK", [("", "a")]),
        "unicode_value": ("200 OK", [("X-A", "\u2603")]),
        "bytes_value": ("200 OK", [("X-A", b"a")]),
        "int_value": ("200 OK", [("X-A", 5)]),
        "triple": ("200 OK", [("X-A", "a", "b")]),
        "tuple": ("200 OK", (("X-A", "a"),)),
        "dict": ("200 OK", {"X-A": "a"}),
        "hop": ("200 OK", [("Transfer-Encoding", "chunked")]),
        "connection": ("200 OK", [("Connection", "close")]),
        "length_text": ("200 OK", [("Content-Length", "many")]),
        "length_signed": ("200 OK", [("Content-Length", "+5")]),
        "length_negative": ("200 OK", [("Content-Length", "-1")]),
        "length_twice": ("200 OK", [("Content-Length", "4"), ("Content-Length", "5")]),
    }[query(environ, "what")]
    start_response(status, headers)
    return [b"body"]


@behaviour
def short(environ, start_response):
    """Less than Content-Length."""
    start_response("200 OK", [*TEXT, ("Content-Length", "100")])
    return [b"short"] if query(environ, "list") else iter([b"sho", b"rt"])


@behaviour
def long(environ, start_response):
    """More than Content-Length."""
    start_response("200 OK", [*TEXT, ("Content-Length", "5")])
    return [b"exactly too long"] if query(environ, "list") else iter([b"exa", b"ct", b"ly too long"])


@behaviour
def exits(environ, start_response):
    sys.exit(3)


@behaviour
def exits_late(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"begun"
    sys.exit(3)


@behaviour
def interrupts(environ, start_response):
    raise KeyboardInterrupt


@behaviour
def exits_generator(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"begun"
    raise GeneratorExit


@behaviour
def multiline(environ, start_response):
    """An exception that tries to look like log records of its own."""
    raise ValueError("first line\n2026/01/01 00:00:00 [emerg] 1#1: forged\n[Thu Jan 01 00:00:00 2026] [core:emerg] forged\x1b[31m")


@behaviour
def recursion(environ, start_response):
    return recursion(environ, start_response)
