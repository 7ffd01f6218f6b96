"""Notes every request it is called with by its connection, for the tests of raw requests: whatever its target is."""

import json
from pathlib import Path

NOTES = Path(__file__).resolve().parents[1] / "notes"


def application(environ, start_response):
    record = {key: value for key, value in environ.items() if isinstance(value, str)}
    how = environ["PATH_INFO"].split("/")[1:2]
    try:
        if how == ["unread"]:
            record["body"] = None
        elif how == ["some"]:
            environ["wsgi.input"].read(1)
            record["body"] = None
        else:
            record["body"] = environ["wsgi.input"].read().decode("latin-1")
    except OSError:
        record["body"] = False
        # An application may well go on.
        if how != ["careless"]:
            raise
    finally:
        with open(NOTES / f"connection-{environ['REMOTE_PORT']}", "ab", buffering=0) as file:
            file.write(json.dumps(record).encode() + b"\n")
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Seen", "yes")])
    return [b"hello"]
