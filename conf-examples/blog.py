"""The Flask application of the examples."""

from flask import Flask, request, url_for

app = Flask(__name__)


@app.get("/")
def front():
    return f"""<!doctype html>
<title>Blog</title>
<p>Mounted at {request.environ["SCRIPT_NAME"]}, stage {request.environ.get("APP_STAGE", "none")}.
<p><a href="{url_for("post", number=1)}">First post</a>
"""


@app.get("/posts/<int:number>")
def post(number):
    return f"<!doctype html><title>Post {number}</title><p>This is post {number}.\n"
