"""A Flask application, at the root and under a prefix."""

import pytest

from support.server import Mount


@pytest.fixture(params=["/", "/blog"], ids=["root", "prefix"])
def flask(request, serve):
    server = serve(Mount("flaskapp:app", at=request.param))
    server.prefix = request.param.rstrip("/")
    return server


def test_flask_answers(flask):
    prefix = flask.prefix
    assert flask.http.get(f"{prefix}/").text == "Hello from Flask"
    item = flask.http.get(f"{prefix}/item/7").json()
    assert item == {"number": 7, "root": prefix, "path": "/item/7", "url": f"{prefix}/item/8"}
    assert flask.http.get(f"{prefix}/external").text == f"{flask.url}{prefix}/"
    moved = flask.http.get(f"{prefix}/go")
    assert moved.status_code == 302 and moved.headers["location"] == f"{prefix}/item/1"
    assert [flask.http.get(f"{prefix}/count").text for _ in range(3)] == ["1", "2", "3"], "the session cookie"
    upload = flask.http.post(f"{prefix}/upload", files={"file": ("a.txt", b"x" * 1_000_000)}, data={"note": "n"})
    assert upload.json() == {"name": "a.txt", "size": 1_000_000, "note": "n"}
    assert flask.http.post(f"{prefix}/json", json={"a": [1, "ä"]}).json() == {"got": {"a": [1, "ä"]}}
    assert flask.http.get(f"{prefix}/stream").text == "".join(f"{number}\n" for number in range(1000))
    assert flask.http.get(f"{prefix}/forbidden").status_code == 403
    assert flask.http.get(f"{prefix}/text/gr%C3%BC%C3%9Fe").text == "grüße"
    assert flask.http.get(f"{prefix}/missing").status_code == 404


def test_flask_logs_a_broken_view(flask):
    assert flask.http.get(f"{flask.prefix}/broken").status_code == 500
    record = flask.expect_log("Exception on", times=None)
    assert "broken view" in flask.log.text() and record
    flask.allow_log("broken view|Traceback")
    assert flask.http.get(f"{flask.prefix}/").text == "Hello from Flask"


def test_chunked_uploads_reach_flask(flask):
    def blocks():
        yield b'{"a": '
        yield b"1}"

    answer = flask.http.post(f"{flask.prefix}/json", content=blocks(), headers={"Content-Type": "application/json"})
    assert answer.json() == {"got": {"a": 1}}
