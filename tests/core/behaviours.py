"""Applications of one behaviour each, for tests/python.rs."""

import gzip
import io
import sys
import tempfile

OK = ("200 OK", [("Content-Type", "text/plain")])

not_callable = 7


def hello(environ, start_response):
    start_response(*OK)
    return [b"Hello ", b"", b"world"]


def make():
    def application(environ, start_response):
        start_response(*OK)
        return [b"made"]

    return application


def generator(environ, start_response):
    start_response(*OK)
    yield b""
    yield b"one"
    yield b"two"


def written(environ, start_response):
    write = start_response(*OK)
    write(b"written, ")
    return [b"returned"]


def environ(environ, start_response):
    start_response(*OK)
    lines = [f"{key}={value!r}" for key, value in sorted(environ.items())]
    return ["\n".join(lines).encode()]


def shows(read):
    def application(environ, start_response):
        start_response(*OK)
        return [repr(read(environ["wsgi.input"])).encode()]

    return application


read_all = shows(lambda i: [i.read(), i.read()])
read_pieces = shows(lambda i: [i.read(4) for _ in range(7)])
read_lines = shows(lambda i: [i.readline(), i.readline(2), i.readline(), i.readline(-1), i.readline()])
read_readlines = shows(lambda i: [i.readlines(), i.readlines()])
read_hint = shows(lambda i: [i.readlines(2), i.readlines(None)])
read_iterated = shows(list)
read_mixed = shows(lambda i: [next(i), i.read(6), i.readline(), i.read()])
read_none = shows(lambda i: [i.read(0), i.read(None)])


def read_all_or_error(environ, start_response):
    try:
        answer = environ["wsgi.input"].read().decode()
    except OSError as error:
        answer = f"{type(error).__name__} {OSError.__name__} {error}"
    start_response(*OK)
    return [answer.encode()]


def file(environ, start_response):
    found = tempfile.TemporaryFile()
    found.write(b"abcdef")
    found.seek(2)
    start_response(*OK)
    return environ["wsgi.file_wrapper"](found)


def file_without_descriptor(environ, start_response):
    start_response(*OK)
    return environ["wsgi.file_wrapper"](io.BytesIO(b"in memory"), 4)


def file_gzip(environ, start_response):
    found = tempfile.NamedTemporaryFile()
    found.write(gzip.compress(b"plain text"))
    found.flush()
    start_response(*OK)
    return environ["wsgi.file_wrapper"](gzip.open(found.name))


def raises(environ, start_response):
    start_response(*OK)
    return [1 / 0]


def raises_late(environ, start_response):
    start_response(*OK)
    yield b"begun"
    raise ValueError("late")


def gives_str(environ, start_response):
    start_response(*OK)
    return ["text"]


def gives_none(environ, start_response):
    start_response(*OK)


def gives_bytes(environ, start_response):
    start_response(*OK)
    return b"bytes"


def never_starts(environ, start_response):
    return [b"body"]


def bad_status(environ, start_response):
    start_response("OK", [])
    return [b""]


def bad_header(environ, start_response):
    start_response("200 OK", [("X-Bad", "a\r\nSet-Cookie: b=1")])
    return [b""]


def header_beyond_latin1(environ, start_response):
    start_response("200 OK", [("X-Bad", "\u20ac")])
    return [b""]


def headers_no_list(environ, start_response):
    start_response("200 OK", (("X", "1"),))
    return [b""]


def starts_twice(environ, start_response):
    start_response(*OK)
    start_response(*OK)
    return [b""]


def exits(environ, start_response):
    sys.exit(3)


def recovers(environ, start_response):
    start_response(*OK)
    try:
        raise KeyError("lost")
    except KeyError:
        start_response("500 Oops", [], sys.exc_info())
    return [b"recovered"]


def exc_info_of_nothing(environ, start_response):
    write = start_response(*OK)
    write(b"begun")
    for wrong in [(None, None, None), (1, 2, 3), (int, "2", None), (KeyError, KeyError("x"), 3), [KeyError, 1, 2]]:
        try:
            start_response(*OK, wrong)
        except TypeError:
            write(b".")
    return []


class RaisesInIter:
    def __iter__(self):
        raise ValueError("from __iter__")


def raises_in_iter(environ, start_response):
    start_response(*OK)
    return RaisesInIter()


def prints_half_a_line(environ, start_response):
    print("half a line", end="")
    start_response(*OK)
    return [b""]


def starts_late(environ, start_response):
    yield b""
    start_response(*OK)
    yield b"late"


def recovers_too_late(environ, start_response):
    start_response(*OK)
    yield b"begun"
    try:
        raise KeyError("lost")
    except KeyError:
        start_response("500 Oops", [], sys.exc_info())
    yield b"never"


closes = {}


class Closing:
    def __init__(self, name, blocks):
        self.name, self.blocks = name, iter(blocks)

    def __iter__(self):
        return self

    def __next__(self):
        block = next(self.blocks)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self):
        closes[self.name] = closes.get(self.name, 0) + 1


def closing(environ, start_response):
    start_response(*OK)
    return Closing("complete", [b"a", b"b"])


def closing_raises(environ, start_response):
    start_response(*OK)
    return Closing("raised", [b"a", ValueError("x")])


def closed(environ, start_response):
    start_response(*OK)
    return [repr([closes["complete"], closes["raised"]]).encode()]


def logs(environ, start_response):
    environ["wsgi.errors"].write("one\ntwo\n")
    print("printed")
    environ["wsgi.errors"].write("unfinished")
    start_response(*OK)
    return [b""]


kept_objects = []


def keeps(environ, start_response):
    write = start_response(*OK)
    kept_objects[:] = [environ["wsgi.input"].read, lambda: start_response(*OK), lambda: write(b"x")]
    return [b""]


def kept(environ, start_response):
    raised = []
    for use in kept_objects:
        try:
            use()
            raised.append("nothing")
        except Exception as error:
            raised.append(type(error).__name__)
    start_response(*OK)
    return [" ".join(raised).encode()]


def fast(environ, start_response):
    start_response(*OK)
    return [b"Hello world"]


def long_message(environ, start_response):
    raise ValueError("x" * 1_000_000)


def forks(environ, start_response):
    """A forked child has its own signals and its own output."""
    import os
    import signal
    import time

    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    start_response(*OK)
    return [repr(os.WTERMSIG(status)).encode()]


def spawns(environ, start_response):
    import subprocess

    failed = subprocess.run(["false"]).returncode
    child = subprocess.Popen(["sleep", "30"])
    child.terminate()
    start_response(*OK)
    return [repr((failed, child.wait(5))).encode()]


def signals(environ, start_response):
    import signal

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)
    start_response(*OK)
    return [repr(signal.getsignal(signal.SIGTERM) == before).encode()]
