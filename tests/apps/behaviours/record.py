"""What behaviours did, for a test to ask later: events by the key in the query string.

In files, since another process may be asked.
"""

import json
import time
from pathlib import Path
from urllib.parse import parse_qs

NOTES = Path(__file__).resolve().parents[2] / "notes"


def query(environ, name, default=""):
    return parse_qs(environ["QUERY_STRING"], keep_blank_values=True).get(name, [default])[0]


def note(environ, event):
    key = query(environ, "key")
    if key:
        with open(NOTES / key, "ab", buffering=0) as file:
            file.write(json.dumps([event, time.time()]).encode() + b"\n")


def noted(key):
    """The events of a key, in order."""
    try:
        lines = (NOTES / key).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class Body:
    """An iterable that notes its close()."""

    def __init__(self, environ, blocks):
        self.environ = environ
        self.blocks = iter(blocks)

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self.blocks)
        except StopIteration:
            note(self.environ, "end")
            raise

    def close(self):
        note(self.environ, "close")
