"""A Flask application of one view, with a parameter in its path and one in its query."""

from flask import Flask, Response, request

application = Flask(__name__)


@application.get("/items/<int:number>")
def item(number):
    return Response(f"item {number}, page {request.args['page']}\n", mimetype="text/plain")
