"""Leaves a file when its process ends in an orderly way, and one when it begins."""

import atexit
import os
from urllib.parse import parse_qs


def application(environ, start_response):
    path = parse_qs(environ["QUERY_STRING"])["path"][0]
    atexit.register(lambda: open(f"{path}/{os.getpid()}", "w").close())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
