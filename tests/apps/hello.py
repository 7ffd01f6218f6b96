"""The smallest application, in each way it can be named."""


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def make():
    return application


class Site:
    """A dotted name: hello:site.application."""

    def __call__(self, environ, start_response):
        return application(environ, start_response)

    application = staticmethod(application)


site = Site()
number = 5
