"""A page that goes on while its file is uploaded: /page?key= and /upload?key=."""

import hashlib
import json
import time

from behaviours.record import note, noted, query

PAGE = b"""<!doctype html>
<title>Upload</title>
<input type="file" id="file">
<script>
const blocks = [], sent = [];
let answer = null, begun = null, ended = null, whole = false;
function block(number) { blocks.push([number, performance.now()]); }
document.getElementById("file").addEventListener("change", event => {
    const request = new XMLHttpRequest();
    request.open("POST", "/upload" + location.search);
    request.upload.onprogress = event => sent.push([event.loaded, performance.now()]);
    request.upload.onload = () => { ended = performance.now(); };
    request.onload = () => { answer = JSON.parse(request.responseText); };
    request.onerror = () => { answer = "failed"; };
    begun = performance.now();
    request.send(event.target.files[0]);
});
</script>
"""


def application(environ, start_response):
    return {"/page": page, "/upload": upload}.get(environ["PATH_INFO"], nothing)(environ, start_response)


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")])
    yield PAGE
    for number in range(600):
        yield b"<script>block(%d)</script>\n" % number
        if noted(query(environ, "key")):
            break
        time.sleep(0.05)
    yield b"<script>whole = true</script>\n"


def upload(environ, start_response):
    digest, length = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(65536):
        digest.update(piece)
        length += len(piece)
    note(environ, "uploaded")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([length, digest.hexdigest()]).encode()]


def nothing(environ, start_response):
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"nothing here"]
