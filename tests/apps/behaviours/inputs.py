"""What an application may do with wsgi.input."""

import hashlib
import json
import queue
import threading
import time

from . import behaviour
from .record import note, query

TEXT = [("Content-Type", "text/plain")]
JSON = [("Content-Type", "application/json")]


def answer(start_response, value):
    start_response("200 OK", JSON)
    return [json.dumps(value).encode()]


def size(environ):
    """What is there to read: validators ask for a size, and PEP 3333 for no more than CONTENT_LENGTH."""
    return int(environ.get("CONTENT_LENGTH") or 0)


@behaviour
def echo(environ, start_response):
    body = environ["wsgi.input"].read(size(environ))
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))])
    return [body]


@behaviour
def echo_all(environ, start_response):
    """read() without a size: the server ends the input (wsgi.input_terminated)."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [body]


@behaviour
def echo_lines(environ, start_response):
    """Answers each line as it comes."""
    start_response("200 OK", TEXT)
    yield from environ["wsgi.input"]


@behaviour
def reads_late(environ, start_response):
    """Reads the body once it has waited for ?seconds=."""
    time.sleep(float(query(environ, "seconds")))
    start_response("200 OK", TEXT)
    return [environ["wsgi.input"].read()]


@behaviour
def echo_while_reading(environ, start_response):
    """Answers each block as it comes."""
    start_response("200 OK", TEXT)
    while block := environ["wsgi.input"].read(1000):
        yield block


@behaviour
def digest(environ, start_response):
    """Reads in pieces, and never holds the whole body."""
    total, sum_ = 0, hashlib.sha256()
    while block := environ["wsgi.input"].read(65536):
        total += len(block)
        sum_.update(block)
    return answer(start_response, [total, sum_.hexdigest()])


@behaviour
def calls(environ, start_response):
    """Any sequence of calls: ?do=[["read", 3], ["readline"], ...]; the results as latin-1 text, exceptions by name."""
    results = []
    for name, *arguments in json.loads(query(environ, "do")):
        try:
            if name == "iterate":
                value = [line for _, line in zip(range(*arguments or [1000]), environ["wsgi.input"])]
            else:
                value = getattr(environ["wsgi.input"], name)(*arguments)
            if isinstance(value, list):
                results.append([line.decode("latin-1") for line in value])
            else:
                results.append(value.decode("latin-1"))
        except Exception as error:
            results.append({"error": type(error).__name__, "os": isinstance(error, OSError)})
    return answer(start_response, results)


@behaviour
def unread(environ, start_response):
    """Answers without a look at the body."""
    start_response("200 OK", TEXT)
    return [b"not interested"]


@behaviour
def reads_after_start(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"started "
    yield environ["wsgi.input"].read(size(environ))


@behaviour
def notes_read(environ, start_response):
    """Reads the whole body and notes how that ended."""
    try:
        body = environ["wsgi.input"].read()
        note(environ, f"read {len(body)}")
    except Exception as error:
        note(environ, f"{'OSError' if isinstance(error, OSError) else type(error).__name__}: {error}")
        raise
    start_response("200 OK", TEXT)
    return [b"read"]


@behaviour
def read_on_thread(environ, start_response):
    """As asgiref does for async views: the request's own thread waits while another reads."""
    results = queue.Queue()
    threading.Thread(target=lambda: results.put(environ["wsgi.input"].read()), daemon=True).start()
    start_response("200 OK", TEXT)
    return [results.get(timeout=10)]


@behaviour
def written_on_thread(environ, start_response):
    """write() called on another thread than the request's."""
    write = start_response("200 OK", TEXT)
    thread = threading.Thread(target=lambda: [write(b"%d " % number) for number in range(20)])
    thread.start()
    thread.join()
    return [b"end"]


KEPT = {}


@behaviour
def keep(environ, start_response):
    """Keeps everything of the request beyond its end."""
    write = start_response("200 OK", TEXT)
    KEPT[query(environ, "key")] = environ["wsgi.input"], environ["wsgi.errors"], write, start_response
    return [b"kept"]


@behaviour
def use_kept(environ, start_response):
    """Uses what was kept of a request that is over: the exceptions by name."""
    kept_input, kept_errors, kept_write, kept_start = KEPT.pop(query(environ, "key"))

    def attempt(function, *arguments):
        try:
            return repr(function(*arguments))
        except Exception as error:
            return type(error).__name__

    return answer(
        start_response,
        {
            "read": attempt(kept_input.read),
            "readline": attempt(kept_input.readline),
            "write": attempt(kept_write, b"x"),
            "start_response": attempt(kept_start, "200 OK", []),
            "errors": attempt(kept_errors.write, "after the end\n"),
        },
    )


@behaviour
def errors(environ, start_response):
    """Writes to wsgi.errors: ?text=, and the other methods."""
    stream = environ["wsgi.errors"]
    stream.write(query(environ, "text") + "\n")
    stream.writelines(["line one\n", "line two\n"])
    stream.flush()
    start_response("200 OK", TEXT)
    return [b"written"]


@behaviour
def slow_reader(environ, start_response):
    """Lets the client wait before it reads."""
    time.sleep(0.5)
    return echo_all(environ, start_response)
