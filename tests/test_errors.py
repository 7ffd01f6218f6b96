"""Failures that explain themselves: the client gets 500 or a visibly broken response, the log one whole record."""

import json
import re
from urllib.parse import quote

import pytest

from test_response import way  # noqa: F401


def whole(record, *parts):
    """A record has its code first, and everything that explains it."""
    assert re.match(r"HB\d{4} ", record.text), record.text
    for part in parts:
        assert part in record.text, f"{part!r} is missing in: {record.text}"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("raises", ["RuntimeError", "raised at once: käse", "faults.py", "in raises"]),
        ("raises_after_start", ["RuntimeError", "after start_response"]),
        ("raises_before_first_block", ["RuntimeError", "before the first block"]),
        ("raises_chained", ["RuntimeError: the second", "KeyError", "direct cause"]),
        ("raises_in_iter", ["RuntimeError", "from __iter__"]),
        ("recursion", ["RecursionError"]),
    ],
)
def test_an_exception_before_the_first_block_is_500_and_one_record(site, way, name, parts):  # noqa: F811
    if way and name == "recursion":
        pytest.skip("the validator is no part of the recursion")
    response = site.get(f"{way}/{name}")
    assert response.status == 500 and response.ending == "whole"
    assert b"Traceback" not in response.body, "the client learns nothing of the inside"
    record = site.expect_log("^HB0401")
    if way:
        # The validators' own iterators were never made whole.
        site.allow_log("IteratorWrapper|GuardedIterator|WSGIWarning|^ *(Traceback|File|AttributeError|if not self.closed|\\^)")
    if site.host == "apache":
        parts = [part.replace("käse", "") for part in parts]
    whole(record, "Traceback (most recent call last)", "500", *parts)
    assert record.level == "error"
    assert site.get("/hello").body == b"hello"


def test_the_record_names_the_request(site):
    site.get("/raises?secret=query")
    site.expect_log("HB0401")
    if site.host == "nginx":
        record = site.expect_log(r'request: "GET /raises')
        assert 'client: 127.0.0.1' in record.text
    else:
        assert re.search(r"\[client 127\.0\.0\.1:\d+\] HB0401", site.log.text())


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", ["raises_after_block", "raises_within_length"])
def test_an_exception_after_the_first_block_breaks_the_response_visibly(site, way, name, version):  # noqa: F811
    # Werkzeug says it too.
    site.allow_log("WSGIWarning: Content-Length and the number of bytes")
    response = site.get(f"{way}/{name}", version=version)
    assert response.status == 200
    assert response.body in (b"begun", b""), response.body
    assert response.broken, "the client must be able to tell"
    whole(site.expect_log("HB0402"), "Traceback (most recent call last)", "after the first block", "connection")
    assert site.get("/hello").body == b"hello"


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("str", "str"),
        ("bytearray", "bytearray"),
        ("memoryview", "memoryview"),
        ("int", "int"),
        ("none", "NoneType"),
        ("none_itself", "NoneType"),
        ("str_itself", "str"),
        ("int_itself", "int"),
    ],
)
def test_what_is_not_bytes_is_refused(site, what, kind):
    assert site.get(f"/gives?what={what}").status == 500
    whole(site.expect_log("HB0403"), kind, "bytes")


def test_a_later_block_that_is_not_bytes_breaks_the_response(site):
    response = site.get("/gives?what=str_second")
    assert response.status == 200 and response.broken and response.body == b"bytes "
    whole(site.expect_log("HB0403"), "str")


def test_bytes_in_place_of_an_iterable_are_told_or_sent(site):
    """bytes is an iterable of numbers: either refused as that, or meant as one block."""
    response = site.get("/gives_bytes_itself")
    if response.status == 200:
        assert response.body == b"bytes"
    else:
        assert response.status == 500
        whole(site.expect_log("HB0403"), "int")


@pytest.mark.parametrize("name", ["never_starts", "never_starts_empty"])
def test_no_start_response_is_500(site, name):
    assert site.get(f"/{name}").status == 500
    whole(site.expect_log("HB0404"), "start_response")


def test_a_second_start_response_without_exc_info_is_refused(site):
    assert site.get("/starts_twice").status == 500
    whole(site.expect_log("HB0405|HB0401"), "start_response", "Traceback")


@pytest.mark.parametrize(
    "what",
    ["no_digits", "two_digits", "four_digits", "no_space", "early", "high", "bytes", "none", "crlf_reason", "unicode_reason"]
    + ["crlf_value", "lf_value", "cr_value", "nul_value", "crlf_name", "space_name", "colon_name", "empty_name"]
    + ["unicode_value", "bytes_value", "int_value", "triple", "tuple", "dict", "hop", "connection"]
    + ["length_text", "length_signed", "length_negative", "length_twice"],
)
def test_a_head_that_is_none_is_500_and_nothing_is_injected(site, what):
    response = site.get(f"/bad_head?what={what}")
    assert response.status == 500
    assert b"X-Injected" not in response.head
    whole(site.expect_log("HB0405"), "Traceback")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("unicode_value", 'the value of header "X-A" has characters beyond latin-1'),
        ("bytes_value", 'the value of header "X-A" is a bytes, not a str'),
        ("int_value", 'the value of header "X-A" is a int, not a str'),
        ("crlf_value", 'the value of header "X-A" contains a control character'),
        ("unicode_reason", 'the status "200 \u2603" has characters beyond latin-1'),
    ],
)
def test_the_record_names_the_header_and_not_its_value(site, what, said):
    """Values may be secrets: cookies, tokens."""
    site.get(f"/bad_head?what={what}")
    record = site.expect_log("HB0405")
    first = record.text.split("\n")[0]
    # httpd's log is of ASCII.
    assert said.replace("\u2603", "\\xe2\\x98\\x83" if site.host == "apache" else "\u2603") in record.text, record.text
    assert site.host == "apache" or '"behaviours:application"' in first, "the application is named"
    assert "X-Injected: yes" not in record.text and (what == "unicode_reason" or "\u2603" not in record.text)


@pytest.mark.parametrize("name", ["exits", "interrupts"])
def test_an_application_cannot_end_the_server(site, name):
    assert site.get(f"/{name}").status == 500
    whole(site.expect_log("HB0409"), "Traceback")
    assert site.get("/hello").body == b"hello"


@pytest.mark.parametrize("name", ["exits_late", "exits_generator"])
def test_an_application_cannot_end_the_server_later(site, name):
    response = site.get(f"/{name}")
    assert response.broken and response.body == b"begun"
    site.expect_log("HB040[29]")
    assert site.get("/hello").body == b"hello"


def test_an_exception_cannot_forge_records(site):
    assert site.get("/multiline").status == 500
    record = site.expect_log("HB0401")
    assert "forged" in record.text
    assert not [found for found in site.log.records() if found.level in ("emerg", "stray")]
    assert "\x1b" not in site.log.text()


def test_many_failures_are_one_record_each(site):
    for _ in range(20):
        assert site.get("/raises").status == 500
    site.expect_log("HB0401", times=20)


def test_failures_at_the_same_time_keep_their_records_whole(site):
    import threading

    threads = [threading.Thread(target=site.get, args=("/raises_chained",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    site.expect_log("HB0401", times=8)
    for record in site.log.matching("HB0401"):
        whole(record, "KeyError", "RuntimeError: the second", "direct cause")
        assert record.text.count("RuntimeError: the second") <= 2


def test_errors_go_through_the_server_s_error_pages(serve):
    page = serve.script("pages/oops.txt", "own page\n")
    server = serve(
        "behaviours:application",
        static={"/pages/": page.parent},
        nginx_server="error_page 500 /pages/oops.txt;",
        apache="ErrorDocument 500 /pages/oops.txt",
    )
    response = server.get("/raises")
    assert (response.status, response.body) == (500, b"own page\n")
    server.expect_log("HB0401")
    # An application's own 500 is its own.
    assert server.get("/status?line=" + quote("500 Mine")).body == b"body"


def test_an_application_s_own_error_gives_way_where_the_operator_says_so(serve):
    page = serve.script("pages/oops.txt", "own page\n")
    server = serve(
        "behaviours:application",
        static={"/pages/": page.parent},
        nginx_http="wsgi_intercept_errors on;",
        nginx_server="error_page 404 503 =503 /pages/oops.txt; error_page 401 /pages/oops.txt;",
        apache="WSGIErrorOverride On\nErrorDocument 404 /pages/oops.txt\nErrorDocument 401 /pages/oops.txt",
    )
    response = server.get("/status?line=" + quote("404 Not here"))
    assert (response.status, response.body) == (404 if server.host == "apache" else 503, b"own page\n")
    challenge = quote(json.dumps([["WWW-Authenticate", 'Bearer realm="x"']]))
    response = server.get(f"/headers?line={quote('401 Who')}&json={challenge}")
    assert (response.status, response.body) == (401, b"own page\n")
    assert response.header("WWW-Authenticate") == 'Bearer realm="x"'
    # A response that is given block by block ends without harm.
    assert server.get("/slow_blocks?line=" + quote("404 Not here")).body == b"own page\n"
    # For what has no page the application's own stays.
    response = server.get("/status?line=" + quote("418 Tea"))
    assert (response.status, response.body) == (418, b"body")
    assert server.get("/hello").body == b"hello"


def test_an_application_may_be_the_error_page(serve):
    server = serve(
        "behaviours:application",
        nginx_server="location = /gone { return 410; } error_page 410 /environ/error;",
        apache='Redirect gone "/gone"\nErrorDocument 410 /environ/error',
    )
    response = server.get("/gone")
    assert response.status == 410 and b'"PATH_INFO": "/error"' in response.body
