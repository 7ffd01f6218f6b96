"""One small callable per behaviour, chosen by the first segment of the path.

`/name/...` calls the behaviour itself, so that the server sees exactly what it returns; `/valid/name/...` calls it inside
`wsgiref.validate.validator`, `/webtest/...` and `/werkzeug/...` inside the checks of these packages.
"""

import warnings
from wsgiref.validate import validator

CHECKS = {"valid": validator}
try:
    import webtest.lint
    from werkzeug.middleware.lint import HTTPWarning, LintMiddleware, WSGIWarning
except ImportError:
    # A Python without the environment's packages.
    pass
else:
    # Werkzeug only warns.
    warnings.simplefilter("error", WSGIWarning)
    warnings.simplefilter("error", HTTPWarning)
    CHECKS |= {"webtest": webtest.lint.middleware, "werkzeug": LintMiddleware}

BEHAVIOURS = {}


def behaviour(function):
    """Offers a callable under its name."""
    BEHAVIOURS[function.__name__] = function
    return function


from . import faults, inputs, process, responses  # noqa: E402, F401

CHECKED = {check: {name: wrap(function) for name, function in BEHAVIOURS.items()} for check, wrap in CHECKS.items()}


def application(environ, start_response):
    table = BEHAVIOURS
    name = _shift(environ)
    if name in CHECKED:
        table, name = CHECKED[name], _shift(environ)
    return table[name](environ, start_response)


def _shift(environ):
    """Moves the first segment of PATH_INFO to SCRIPT_NAME."""
    _, name, *rest = environ["PATH_INFO"].split("/", 2)
    environ["SCRIPT_NAME"] += "/" + name
    environ["PATH_INFO"] = "/" + rest[0] if rest else ""
    return name
