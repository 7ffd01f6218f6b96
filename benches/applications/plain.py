"""Applications without a framework, one for each workload that needs none."""

import os
import time

HELLO = b"Hello, world\n"
ENVIRON = b"0123456789abcdef" * 64
BLOCK = b"x" * 1024
BIG = b"x" * 1024 * 1024
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "file.bin")
KEYS = (
    "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "SERVER_PROTOCOL", "REMOTE_ADDR",
    "HTTP_HOST", "HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE", "HTTP_COOKIE", "HTTP_X_REQUEST_ID",
)  # fmt: skip


def answer(start_response, length):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(length))])


def hello(environ, start_response):
    answer(start_response, len(HELLO))
    return [HELLO]


def keys(environ, start_response):
    for key in KEYS:
        if not isinstance(environ[key], str):
            raise TypeError(key)
    answer(start_response, len(ENVIRON))
    return [ENVIRON]


def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(100):
        yield BLOCK


def big(environ, start_response):
    answer(start_response, len(BIG))
    return [BIG]


def file(environ, start_response):
    opened = open(FILE, "rb")
    answer(start_response, os.fstat(opened.fileno()).st_size)
    # Not every server has one.
    if wrapper := environ.get("wsgi.file_wrapper"):
        return wrapper(opened, 65536)
    return iter(lambda: opened.read(65536), b"")


def post(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    text = b"%d\n" % len(body)
    answer(start_response, len(text))
    return [text]


def sleep(environ, start_response):
    time.sleep(0.01)
    return hello(environ, start_response)
