"""A Flask site: routing, url_for, sessions, streaming, uploads."""

from flask import Flask, abort, jsonify, redirect, request, session, url_for

app = Flask(__name__)
app.secret_key = "for tests"


@app.route("/")
def index():
    return "Hello from Flask"


@app.route("/item/<int:number>")
def item(number):
    return jsonify(number=number, root=request.script_root, path=request.path, url=url_for("item", number=number + 1))


@app.route("/external")
def external():
    return url_for("index", _external=True)


@app.route("/go")
def go():
    return redirect(url_for("item", number=1))


@app.route("/count")
def count():
    session["count"] = session.get("count", 0) + 1
    return str(session["count"])


@app.route("/upload", methods=["POST"])
def upload():
    file = request.files["file"]
    return jsonify(name=file.filename, size=len(file.read()), note=request.form["note"])


@app.route("/json", methods=["POST"])
def take_json():
    return jsonify(got=request.get_json())


@app.route("/stream")
def stream():
    return app.response_class((f"{number}\n" for number in range(1000)), mimetype="text/plain")


@app.route("/forbidden")
def forbidden():
    abort(403)


@app.route("/broken")
def broken():
    raise RuntimeError("broken view")


@app.route("/text/<path:rest>")
def text(rest):
    return rest
