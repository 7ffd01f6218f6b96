"""httpbin, as it comes, driven by a browser-like client: what frameworks and clients do all day."""

import base64
import json

import httpx
import pytest

from conftest import HOSTS, ONE_OF_EACH
from support.server import Mount, Site


@pytest.fixture(scope="module", params=ONE_OF_EACH)
def bin(request, stage):
    host = HOSTS[request.param]
    script = stage.directory(f"httpbin-{request.param}")
    site = Site([Mount("httpbin:app", pass_authorization=True)], threads=8)
    server = host(stage, site, script)
    server.start()
    server.allow_log("flasgger is not installed")
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        yield client
    complaints = server.stop() + server.log.unexpected()
    assert not complaints, complaints


def test_methods_and_what_they_send(bin):
    assert bin.get("/get", params={"a": ["1", "2"], "b": "ä"}).json()["args"] == {"a": ["1", "2"], "b": "ä"}
    for method in ("post", "put", "patch", "delete"):
        answer = bin.request(method.upper(), f"/{method}", json={"x": [1, "ä"]}).json()
        assert answer["json"] == {"x": [1, "ä"]}
    assert bin.post("/post", data={"form": "a b", "other": "ü"}).json()["form"] == {"form": "a b", "other": "ü"}
    answer = bin.post("/post", files={"upload": ("name.txt", b"content of a file" * 1000)}).json()
    assert answer["files"]["upload"] == "content of a file" * 1000
    binary = bytes(range(256)) * 400
    answer = bin.post("/post", content=binary, headers={"Content-Type": "application/octet-stream"}).json()
    assert base64.b64decode(answer["data"].split(",", 1)[1]) == binary
    assert bin.request("PROPFIND", "/anything").status_code in (200, 405)
    # httpbin's own rule, for every server but gunicorn.
    assert bin.post("/anything", content=iter([b"chunked ", b"body"])).status_code == 501


@pytest.mark.parametrize("code", [200, 201, 204, 301, 304, 400, 401, 404, 406, 418, 429, 500, 503])
def test_statuses(bin, code):
    response = bin.get(f"/status/{code}")
    assert response.status_code == code
    if code in (204, 304):
        assert response.content == b""


def test_redirects(bin):
    assert bin.get("/redirect/3", follow_redirects=True).url.path == "/get"
    assert bin.get("/absolute-redirect/2", follow_redirects=True).url == bin.base_url.join("/get")
    assert bin.get("/redirect-to", params={"url": "/get?x=1"}, follow_redirects=True).json()["args"] == {"x": "1"}


def test_cookies(bin):
    with httpx.Client(base_url=bin.base_url, trust_env=False) as session:
        session.get("/cookies/set", params={"a": "1", "b": "two"}, follow_redirects=True)
        assert session.get("/cookies").json()["cookies"] == {"a": "1", "b": "two"}
        session.get("/cookies/delete", params={"a": ""}, follow_redirects=True)
        assert session.get("/cookies").json()["cookies"] == {"b": "two"}


def test_authentication(bin):
    assert bin.get("/basic-auth/u/p").status_code == 401
    assert bin.get("/basic-auth/u/p", auth=("u", "p")).json()["authenticated"]
    assert bin.get("/digest-auth/auth/u/p", auth=httpx.DigestAuth("u", "p")).json()["authenticated"]
    assert bin.get("/bearer", headers={"Authorization": "Bearer token"}).json()["token"] == "token"


def test_headers_both_ways(bin):
    assert bin.get("/headers", headers={"X-Some": "value"}).json()["headers"]["X-Some"] == "value"
    response = bin.get("/response-headers", params=[("X-A", "1"), ("X-A", "2"), ("X-B", "ü")])
    assert response.headers.get_list("X-A") == ["1", "2"]
    assert bin.get("/user-agent", headers={"User-Agent": "test"}).json() == {"user-agent": "test"}


@pytest.mark.parametrize("path", ["gzip", "deflate", "brotli"])
def test_bodies_that_the_application_packs(bin, path):
    response = bin.get(f"/{path}", headers={"Accept-Encoding": "gzip, deflate"})
    assert response.headers["Content-Encoding"] == {"brotli": "br"}.get(path, path)
    assert path == "brotli" or response.json()


def test_streams(bin):
    lines = [json.loads(line) for line in bin.get("/stream/20").text.splitlines()]
    assert [line["id"] for line in lines] == list(range(20))
    assert len(bin.get("/stream-bytes/100000", params={"seed": 1, "chunk_size": 777}).content) == 100_000
    assert bin.get("/bytes/50000", params={"seed": 1}).content == bin.get("/bytes/50000", params={"seed": 1}).content
    assert len(bin.get("/drip", params={"numbytes": 5, "duration": 0.5, "delay": 0}).content) == 5
    assert bin.get("/delay/0.3").status_code == 200


def test_ranges_and_conditions_are_the_application_s(bin):
    response = bin.get("/range/1000", headers={"Range": "bytes=10-19"})
    assert (response.status_code, len(response.content)) == (206, 10)
    assert response.headers["Content-Range"] == "bytes 10-19/1000"
    assert bin.get("/range/1000", headers={"Range": "bytes=2000-"}).status_code == 416
    assert bin.get("/etag/abc", headers={"If-None-Match": "abc"}).status_code == 304
    assert bin.get("/etag/abc", headers={"If-Match": "other"}).status_code == 412
    assert bin.get("/cache", headers={"If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"}).status_code == 304
    assert "public" in bin.get("/cache/60").headers["Cache-Control"]


def test_kinds_of_content(bin):
    for kind in ("png", "jpeg", "webp", "svg"):
        response = bin.get(f"/image/{kind}")
        assert response.headers["Content-Type"].startswith(f"image/{kind}") and len(response.content) > 1000
    assert "∀x∈ℝ" in bin.get("/encoding/utf8").text
    assert bin.get("/html").text.startswith("<!DOCTYPE html>")
    assert bin.get("/robots.txt").text.startswith("User-agent")
    assert bin.head("/get").content == b""
    assert "GET" in bin.request("OPTIONS", "/get").headers["Allow"]
