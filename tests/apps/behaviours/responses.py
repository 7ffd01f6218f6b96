"""What an application may do with start_response, write() and its iterable, all of it allowed by PEP 3333."""

import base64
import json
import os
import sys
import time

from . import behaviour
from .record import NOTES, Body, note, noted, query

TEXT = [("Content-Type", "text/plain")]


@behaviour
def hello(environ, start_response):
    start_response("200 OK", TEXT)
    return [b"hello"]


@behaviour
def recorded(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(noted(query(environ, "key"))).encode()]


@behaviour
def listed(environ, start_response):
    start_response("200 OK", TEXT)
    return [b"one ", b"two ", b"three"]


@behaviour
def tupled(environ, start_response):
    start_response("200 OK", TEXT)
    return (b"one ", b"two ", b"three")


@behaviour
def generated(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"one "
    yield b"two "
    yield b"three"


@behaviour
def late_start(environ, start_response):
    """A generator's body runs at the first next(): start_response comes after the application returned."""
    start_response("200 OK", TEXT)
    yield b"late"


@behaviour
def list_subclass_with_close(environ, start_response):
    class Blocks(list):
        def close(self):
            note(environ, "close")

    start_response("200 OK", TEXT)
    return Blocks([b"one ", b"two"])


@behaviour
def empty_list(environ, start_response):
    start_response("200 OK", TEXT)
    return []


@behaviour
def empty_blocks(environ, start_response):
    start_response("200 OK", TEXT)
    yield b""
    yield b""


@behaviour
def sequence_protocol(environ, start_response):
    """Iterable by __getitem__ alone."""

    class Blocks:
        def __getitem__(self, index):
            return [b"one ", b"two"][index]

    start_response("200 OK", TEXT)
    return Blocks()


@behaviour
def shaped(environ, start_response):
    """Blocks and iterables that say one thing of themselves and hold another: ?as=."""

    class Lying(bytes):
        """What bytes it is decides, not what it says."""

        def __len__(self):
            return 1

        def __bytes__(self):
            return b"wrong"

        def __getitem__(self, index):
            return b"wrong"

        def __str__(self):
            return "wrong"

    class Once:
        """Says that it has one block, and has three."""

        def __len__(self):
            return 1

        def __iter__(self):
            return iter([b"one ", b"two ", b"three"])

    class Sequence:
        def __len__(self):
            return 100

        def __getitem__(self, index):
            return [b"one ", b"two ", b"three"][index]

    class Refined(list):
        def __iter__(self):
            return iter([b"one ", *super().__iter__()])

        def __len__(self):
            return 0

    class Pair(tuple):
        __slots__ = ()

        def __iter__(self):
            return iter([b"one ", b"two ", b"three"])

    class Ended:
        """An iterator that goes on after its end."""

        def __init__(self):
            self.blocks = [b"one ", b"two ", b"three", None, b"four"]

        def __iter__(self):
            return self

        def __next__(self):
            block = self.blocks.pop(0)
            if block is None:
                raise StopIteration
            return block

    start_response("200 OK", TEXT)
    return {
        "subclass": lambda: [Lying(b"one "), Lying(b"two "), Lying(b"three")],
        "subclass_generated": lambda: (Lying(block) for block in [b"one ", b"two ", b"three"]),
        "subclass_alone": lambda: [Lying(b"one two three")],
        "len": Once,
        "sequence": Sequence,
        "list_subclass": lambda: Refined([b"two ", b"three"]),
        "tuple_subclass": lambda: Pair([b"wrong"]),
        "iterator": Ended,
        "dict": lambda: {b"one ": 1, b"two ": 2, b"three": 3},
        "set": lambda: frozenset([b"one two three"]),
        "map": lambda: map(bytes.lower, [b"ONE ", b"TWO ", b"THREE"]),
        "empty_blocks_between": lambda: [b"", b"one ", b"", b"", b"two three", b""],
    }[query(environ, "as")]()


@behaviour
def bodiless(environ, start_response):
    """A body where none may be: ?line= is the status, ?as= the way it is given, ?length= its Content-Length."""
    length = query(environ, "length")
    write = start_response(query(environ, "line", "200 OK"), [*TEXT, ("Content-Length", length)] if length else TEXT)
    way = query(environ, "as")
    if way == "written":
        write(b"body")
        write(b"more")
        return Body(environ, [])
    if way == "file":
        file = open(__file__, "rb")
        return environ["wsgi.file_wrapper"](Closing(environ, file) if query(environ, "key") else file)
    if way == "list":
        return [b"body", b"more"]
    return Body(environ, [b"body", b"more"] if way == "blocks" else [bytes(1_000_000)] * 3)


class Closing:
    """A file that notes its close()."""

    def __init__(self, environ, file):
        self.environ, self.file = environ, file
        self.read, self.fileno = file.read, file.fileno

    def close(self):
        note(self.environ, "close")
        self.file.close()


@behaviour
def written(environ, start_response):
    write = start_response("200 OK", TEXT)
    write(b"written ")
    write(b"")
    write(b"twice ")
    return [b"returned"]


@behaviour
def written_slowly(environ, start_response):
    write = start_response("200 OK", TEXT)
    write(b"first")
    time.sleep(0.5)
    write(b"second")
    return []


@behaviour
def slow_blocks(environ, start_response):
    start_response(query(environ, "line", "200 OK"), TEXT)
    for block in (b"first", b"second", b"third"):
        yield block
        time.sleep(0.4)


@behaviour
def empty_then_slow(environ, start_response):
    """An empty block is no reason to send the head: another start_response may still come."""
    start_response("200 OK", TEXT)
    yield b""
    time.sleep(0.4)
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start_response("202 Accepted", TEXT, sys.exc_info())
    yield b"accepted"


@behaviour
def replaced_head(environ, start_response):
    start_response("200 OK", [*TEXT, ("X-Old", "yes")])
    try:
        raise ValueError("handled")
    except ValueError:
        start_response("503 Handled", [*TEXT, ("X-New", "yes")], sys.exc_info())
    return [b"error page"]


@behaviour
def exc_info_after_head(environ, start_response):
    """The head has left: start_response raises the exception again. PEP 3333."""
    start_response("200 OK", TEXT)
    yield b"begun"
    try:
        raise LookupError("too late to change the head")
    except LookupError:
        start_response("500 Oops", TEXT, sys.exc_info())
    yield b"never"


@behaviour
def exc_info_caught(environ, start_response):
    """The same, and the application catches what start_response raises."""
    start_response("200 OK", TEXT)
    yield b"begun "
    try:
        try:
            raise LookupError("too late")
        except LookupError:
            start_response("500 Oops", TEXT, sys.exc_info())
    except LookupError as error:
        yield f"raised again: {error}".encode()


@behaviour
def closing(environ, start_response):
    start_response("200 OK", TEXT)
    return Body(environ, [b"one ", b"two"])


@behaviour
def with_length(environ, start_response):
    start_response("200 OK", [*TEXT, ("Content-Length", "7")])
    yield b"one "
    yield b"two"


@behaviour
def status(environ, start_response):
    """Any status: ?line=404+My+Reason."""
    headers = [] if query(environ, "line")[:3] in ("204", "304") else TEXT
    start_response(query(environ, "line"), headers)
    return [] if query(environ, "bare") else [b"body"]


@behaviour
def head_only(environ, start_response):
    """As frameworks do: the length of GET, no body for HEAD."""
    start_response("200 OK", [*TEXT, ("Content-Length", "5")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"hello"]


@behaviour
def bodies_for_head(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"hello"
    yield b"again"


@behaviour
def bodies_for_304(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"x"')])
    yield b"hello"


@behaviour
def headers(environ, start_response):
    """Any headers: ?json=[["Name", "value"], ...], with ?line= as the status."""
    given = [tuple(pair) for pair in json.loads(query(environ, "json"))]
    names = {name.lower() for name, _ in given}
    start_response(query(environ, "line", "200 OK"), given if "content-type" in names else [*TEXT, *given])
    return [b"body"]


@behaviour
def no_content_type(environ, start_response):
    start_response("200 OK", [])
    return [b"body"]


@behaviour
def big(environ, start_response):
    """?size= bytes in blocks of ?block=; a pattern, so that missing or swapped parts are seen."""
    size, block = int(query(environ, "size")), int(query(environ, "block", "65536"))
    headers = [*TEXT, ("Content-Length", str(size))] if query(environ, "length") else TEXT
    start_response("200 OK", headers)
    data = pattern(size)
    if query(environ, "list"):
        return [data[start : start + block] for start in range(0, size, block)]
    return (data[start : start + block] for start in range(0, size, block))


def pattern(size):
    unit = b"".join(b"%015d\n" % number for number in range(4096))
    return (unit * (size // len(unit) + 1))[:size]


@behaviour
def endless(environ, start_response):
    """Until the client goes away."""

    def blocks():
        while True:
            time.sleep(0.02)
            yield b"x" * int(query(environ, "size", "100"))

    start_response("200 OK", TEXT)
    return Body(environ, blocks())


@behaviour
def flood(environ, start_response):
    """As fast as the client takes it, at most 2 GiB; notes how much was taken."""

    def blocks():
        block = bytes(65536)
        with open(NOTES / (query(environ, "key") + "-taken"), "wb", buffering=0) as file:
            for taken in range(0, 2 << 30, len(block)):
                os.pwrite(file.fileno(), b"%12d\n" % taken, 0)
                yield block

    start_response("200 OK", TEXT)
    return Body(environ, blocks())


@behaviour
def wrapped_file(environ, start_response):
    """wsgi.file_wrapper over the file ?path=, from ?offset=, with ?length= as Content-Length."""
    file = open(query(environ, "path"), "rb")
    file.seek(int(query(environ, "offset", "0")))
    length = query(environ, "length")
    start_response("200 OK", [*TEXT, ("Content-Length", length)] if length else TEXT)
    return environ["wsgi.file_wrapper"](file, 8192)


@behaviour
def wrapped_closing(environ, start_response):
    """The wrapper has close(), and hands it on."""
    start_response("200 OK", TEXT)
    return environ["wsgi.file_wrapper"](Closing(environ, open(query(environ, "path"), "rb")))


@behaviour
def wrapped_object(environ, start_response):
    """wsgi.file_wrapper over something that is no file."""

    class Source:
        def __init__(self):
            self.blocks = [b"one ", b"two ", b"three"]

        def read(self, size):
            note(environ, f"read {size}")
            return self.blocks.pop(0) if self.blocks else b""

        def close(self):
            note(environ, "close")

    start_response("200 OK", TEXT)
    return environ["wsgi.file_wrapper"](Source(), 4000)


@behaviour
def wrapped_pipe(environ, start_response):
    """wsgi.file_wrapper over a pipe: it has a descriptor, and no size."""
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    start_response("200 OK", TEXT)
    return environ["wsgi.file_wrapper"](os.fdopen(reader, "rb"))


@behaviour
def wrapped_bytesio(environ, start_response):
    import io

    file = io.BytesIO(b"0123456789")
    file.seek(3)
    start_response("200 OK", TEXT)
    return environ["wsgi.file_wrapper"](file)


@behaviour
def environ(environ, start_response):
    """environ as JSON: strings as they are, other values by their repr; bytes in names are a fault."""
    dump = {k: v if isinstance(v, (str, bool)) else list(v) if isinstance(v, tuple) else repr(v) for k, v in environ.items()}
    assert type(environ) is dict and all(type(key) is str for key in environ)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(dump).encode()]


@behaviour
def encoded(environ, start_response):
    """Bytes of the client's choice: ?base64=."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [base64.b64decode(query(environ, "base64"))]
