"""start_response, blocks, write(), close() and Content-Length: what leaves for what the application does."""

import json
import re
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from support.client import until

sys.path.insert(0, str(Path(__file__).parent / "apps"))


@pytest.fixture(params=["", "/valid", "/webtest", "/werkzeug"], ids=["plain", "validated", "webtest", "werkzeug"])
def way(request):
    """The behaviour itself, and inside wsgiref.validate, WebTest's lint and werkzeug's."""
    return request.param


def events(site, key):
    return [event for event, _ in site.get(f"/recorded?key={key}").json()]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("hello", b"hello"),
        ("listed", b"one two three"),
        ("tupled", b"one two three"),
        ("generated", b"one two three"),
        ("late_start", b"late"),
        ("sequence_protocol", b"one two"),
        ("written", b"written twice returned"),
        ("empty_list", b""),
        ("empty_blocks", b""),
    ],
)
def test_every_kind_of_iterable_arrives_whole(site, way, name, body):
    if way and name == "sequence_protocol":
        # The validator wants __iter__.
        pytest.skip("allowed by PEP 3333 and not by wsgiref.validate")
    response = site.get(f"{way}/{name}")
    assert (response.status, response.reason, response.body) == (200, b"OK", body)
    assert response.ending == "whole"
    assert response.header("Content-Type") == "text/plain"


@pytest.mark.parametrize(
    "shape",
    ["subclass", "subclass_generated", "subclass_alone", "len", "sequence", "list_subclass", "tuple_subclass"]
    + ["iterator", "dict", "set", "map", "empty_blocks_between"],
)
def test_what_blocks_and_iterables_hold_counts_and_not_what_they_say(site, shape):
    response = site.get(f"/shaped?as={shape}")
    assert response.body == b"one two three" and response.ending == "whole"
    assert response.header("Content-Length") in (None, "13")


@pytest.mark.parametrize("name", ["hello", "listed", "generated", "written", "empty_list"])
def test_http_1_0_clients_get_the_same_body_without_chunks(site, name):
    response = site.get(f"/{name}", version="1.0")
    assert response.header("Transfer-Encoding") is None
    assert response.body == site.get(f"/{name}").body
    assert response.ending in ("whole", "closed")


@pytest.mark.parametrize(("name", "length"), [("hello", "5"), ("listed", "13"), ("tupled", "13"), ("empty_list", "0")])
def test_a_body_that_is_known_whole_gets_a_content_length(site, name, length):
    response = site.get(f"/{name}")
    assert response.header("Content-Length") == length
    assert response.header("Transfer-Encoding") is None


def test_a_body_of_unknown_length_is_chunked(site):
    response = site.get("/generated")
    assert response.header("Content-Length") is None
    assert response.header("Transfer-Encoding") == "chunked"


def test_the_connection_is_kept_after_each_kind_of_response(site, way):
    # A 204 with a block is one of the kinds.
    site.allow_log("HTTPWarning: 204 responses must")
    names = ["hello", "generated", "written", "empty_list", "with_length", "status?line=204+No+Content&bare=1"]
    with site.connect() as connection:
        for name in names * 2:
            connection.request("GET", f"{way}/{name}")
            response = connection.response()
            assert response.status in (200, 204) and response.ending == "whole", name


def test_pipelined_requests_are_answered_in_order(site):
    with site.connect() as connection:
        connection.send(b"".join(b"GET /encoded?base64=%s HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in (b"b25l", b"dHdv", b"M3Jk")))
        assert [connection.response().body for _ in range(3)] == [b"one", b"two", b"3rd"]


# Head


def test_the_head_waits_for_the_first_block_that_is_not_empty(site):
    response = site.get("/empty_then_slow")
    assert (response.status, response.body) == (202, b"accepted")


def test_exc_info_replaces_a_head_that_was_not_sent(site, way):
    response = site.get(f"{way}/replaced_head")
    assert (response.status, response.reason) == (503, b"Handled")
    assert response.header("X-New") == "yes" and response.header("X-Old") is None
    assert response.body == b"error page"


def test_exc_info_after_the_head_raises_the_exception_again(site, way):
    response = site.get(f"{way}/exc_info_after_head")
    assert response.status == 200 and response.broken and response.body == b"begun"
    record = site.expect_log(r"HB0402 .*LookupError")
    assert "too late to change the head" in record.text


def test_an_application_may_catch_what_start_response_raises(site, way):
    response = site.get(f"{way}/exc_info_caught")
    assert response.body == b"begun raised again: 'too late'" or response.body == b"begun raised again: too late"
    assert response.ending == "whole"


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("200 OK", 200, b"OK"),
        ("200 Very Well Indeed", 200, b"Very Well Indeed"),
        ("201 Created", 201, b"Created"),
        ("299 Unheard Of", 299, b"Unheard Of"),
        ("404 Nothing here, sorry", 404, b"Nothing here, sorry"),
        ("418 I'm a teapot", 418, b"I'm a teapot"),
        ("500 Own Page", 500, b"Own Page"),
        ("599 End", 599, b"End"),
    ],
)
def test_status_and_reason_leave_as_given(site, way, line, status, reason):
    response = site.get(f"{way}/status?line={quote(line)}")
    assert (response.status, response.reason) == (status, reason)
    assert response.body == b"body", "the application's own page is kept"


def test_a_status_without_a_reason_is_allowed(site):
    assert site.get("/status?line=404").status == 404


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content", "304 Not Modified"])
def test_statuses_without_a_body_have_none(site, status):
    with site.connect() as connection:
        for suffix in ("", "&bare=1"):
            connection.request("GET", f"/status?line={quote(status)}{suffix}")
            response = connection.response()
            assert response.status == int(status[:3]) and response.header("Transfer-Encoding") is None
            assert response.header("Content-Length") in (None, "0")
        connection.request("GET", "/bodies_for_304")
        assert connection.response().header("ETag") == '"x"'
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello", "no byte of a body is left on the connection"


BODILESS = [("GET", "204 No"), ("GET", "205 Reset"), ("GET", "304 Not"), ("HEAD", "200 OK"), ("HEAD", "404 Not Here")]


@pytest.mark.parametrize("given", ["list", "blocks", "written", "file", "large"])
@pytest.mark.parametrize(("method", "line"), BODILESS)
def test_where_no_body_may_be_none_is_sent_whatever_the_application_gives(site, method, line, given, key):
    code = int(line[:3])
    with site.connect() as connection:
        for number, (version, length) in enumerate([("1.1", ""), ("1.1", "8"), ("1.1", "0"), ("1.0", "")]):
            path = f"/bodiless?line={quote(line)}&as={given}&length={length}&key={key}{number}"
            connection.request(method, path, version=version)
            response = connection.response(method)
            assert response.status == code and response.body == b""
            promised = response.header("Content-Length")
            if method == "HEAD":
                # Without HttpContentLengthHeadZero httpd takes 0 for a length that nobody knows.
                assert promised == length or not length or (site.host, length) == ("apache", "0"), "what GET would get"
            else:
                assert response.header("Transfer-Encoding") is None
                # RFC 9110 sections 8.6, 15.3.6 and 15.4.5.
                assert promised in {204: (None,), 205: ("0",), 304: (None, length)}[code]
            if given != "list":
                assert until(lambda: "close" in events(site, f"{key}{number}"))
                assert events(site, f"{key}{number}").count("close") == 1
        # HTTP/1.0 ends its connection; what is left on it would be a body.
        assert connection.rest() == b""


@pytest.mark.parametrize("name", ["hello", "generated", "written", "head_only", "bodies_for_head", "with_length"])
def test_head_gets_no_body(site, way, name):
    # Werkzeug does not know that HEAD has no body.
    site.allow_log("WSGIWarning: Content-Length and the number of bytes")
    with site.connect() as connection:
        connection.request("HEAD", f"{way}/{name}")
        response = connection.response("HEAD")
        assert response.status == 200 and response.header("Content-Type") == "text/plain"
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello", "no byte of a body is left on the connection"


def test_head_keeps_the_content_length_of_get(site, way):
    # Werkzeug does not know that HEAD has no body.
    site.allow_log("WSGIWarning: Content-Length and the number of bytes")
    assert site.request("HEAD", f"{way}/head_only").header("Content-Length") == "5"
    assert site.request("HEAD", f"{way}/with_length").header("Content-Length") == "7"


def headers(site, *pairs):
    return site.get("/headers?json=" + quote(json.dumps(pairs)))


def test_headers_leave_byte_for_byte(site):
    response = headers(
        site,
        ("X-Plain", "value"),
        ("x-lower", "kept as it is"),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
        ("X-Tab", "a\tb"),
        ("X-Quotes", '"a", b="c; d"'),
        ("X-Long", "v" * 3000),
    )
    assert (b"X-Plain", b"value") in response.headers
    assert (b"x-lower", b"kept as it is") in response.headers
    assert (b"X-Latin", b"caf\xe9") in response.headers
    assert (b"X-Empty", b"") in response.headers
    assert (b"X-Tab", b"a\tb") in response.headers
    assert (b"X-Quotes", b'"a", b="c; d"') in response.headers
    assert (b"X-Long", b"v" * 3000) in response.headers


def test_repeated_headers_stay_apart_and_in_order(site):
    response = headers(
        site,
        ("Set-Cookie", "a=1; Path=/"),
        ("Link", "</a>; rel=preload"),
        ("Set-Cookie", "b=2; HttpOnly"),
        ("Link", "</b>; rel=preload"),
        ("Set-Cookie", "c=3"),
        ("Cache-Control", "no-cache"),
        ("Cache-Control", "private"),
        ("Vary", "Accept"),
        ("Vary", "Cookie"),
        ("WWW-Authenticate", "Basic realm=a"),
        ("WWW-Authenticate", "Bearer"),
    )
    assert response.all("Set-Cookie") == ["a=1; Path=/", "b=2; HttpOnly", "c=3"]
    assert response.all("Link") == ["</a>; rel=preload", "</b>; rel=preload"]
    for name, values in (
        ("Cache-Control", ["no-cache", "private"]),
        ("Vary", ["Accept", "Cookie"]),
        ("WWW-Authenticate", ["Basic realm=a", "Bearer"]),
    ):
        # One field or several, with or without white space: the same list (RFC 9110 section 5.3).
        assert [part.strip() for part in ",".join(response.all(name)).split(",")] == values, name


@pytest.mark.parametrize(
    "value",
    ["text/html", "text/html; charset=utf-8", "text/html;charset=UTF-8", "text/plain; charset=koi8-r; x=y", "a/b", "text/html; x=\"q;r\""],
)
def test_content_type_leaves_as_given(site, value):
    assert headers(site, ("Content-Type", value)).header("Content-Type") == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Location", "/elsewhere?a=b"),
        ("Location", "https://example.org/\xe9"),
        ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
        ("ETag", 'W/"abc"'),
        ("Expires", "Wed, 21 Oct 2015 07:28:00 GMT"),
        ("Content-Encoding", "br"),
        ("Content-Language", "de"),
        ("Content-Disposition", "attachment; filename=a.txt"),
        ("Accept-Ranges", "none"),
        ("Content-Range", "bytes 0-3/10"),
        ("Date", "Wed, 21 Oct 2015 07:28:00 GMT"),
        ("Refresh", "5"),
        ("Status", "404 of CGI, no meaning here"),
        ("X-Accel-Expires", "0"),
        ("Retry-After", "120"),
        ("Allow", "GET, HEAD"),
    ],
)
def test_headers_the_server_knows_leave_once_and_unchanged(site, name, value):
    response = headers(site, (name, value))
    assert response.status == 200 and response.body == b"body"
    if name == "Date" and site.host == "apache":
        # Apache sets Date itself, over any other: "ap_basic_http_header".
        assert response.header("Date")
    else:
        assert response.header(name) == value


def test_the_server_header_comes_once(site):
    given = headers(site, ("Server", "Mine/1.0")).header("Server")
    assert given and (given == "Mine/1.0" or site.host in given.lower())
    assert site.host in site.get("/hello").header("Server").lower()
    assert site.get("/hello").header("Date")


def test_a_response_without_content_type_gets_none_invented(site):
    assert site.get("/no_content_type").header("Content-Type") is None


@pytest.mark.parametrize(
    "condition",
    [
        [("Range", "bytes=0-1")],
        [("Range", "bytes=0-1"), ("If-Range", '"x"')],
        [("If-None-Match", '"x"')],
        [("If-Modified-Since", "Wed, 21 Oct 2030 07:28:00 GMT")],
        [("If-Match", '"y"')],
        [("If-Unmodified-Since", "Wed, 21 Oct 2000 07:28:00 GMT")],
    ],
    ids=lambda condition: condition[-1][0],
)
def test_ranges_and_conditions_are_the_application_s(site, condition):
    given = [["ETag", '"x"'], ["Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"], ["Accept-Ranges", "bytes"]]
    response = site.get("/headers?json=" + quote(json.dumps(given)), condition)
    assert (response.status, response.body) == (200, b"body")
    assert [response.header(name) for name, _ in given] == [value for _, value in given]


def test_a_location_does_not_change_the_status(site):
    response = headers(site, ("Location", "/x"))
    assert response.status == 200


def test_many_headers_leave(site):
    pairs = [(f"X-Header-{number}", "v" * 50) for number in range(60)]
    response = headers(site, *pairs)
    for name, value in pairs:
        assert response.header(name) == value


# Blocks and time


@pytest.mark.parametrize(("name", "count"), [("slow_blocks", 3), ("written_slowly", 2)])
def test_each_block_leaves_before_the_next_is_asked_for(site, way, name, count):
    pieces = site.get(f"{way}/{name}").pieces
    assert len(pieces) == count, pieces
    for (before, _), (after, _) in zip(pieces, pieces[1:]):
        assert after - before > 0.25, "a block waited for the next one"


def test_head_and_first_block_leave_at_once(site):
    with site.connect() as connection:
        connection.request("GET", "/slow_blocks")
        head = connection.read_head()
        connection.read_body(head)
        assert head.pieces[0][0] < 0.3


# close()


@pytest.mark.parametrize("name", ["closing", "list_subclass_with_close"])
def test_close_is_called_once_after_the_last_block(site, way, name, key):
    assert site.get(f"{way}/{name}?key={key}").ending == "whole"
    assert until(lambda: "close" in events(site, key))
    assert events(site, key) == (["end", "close"] if name == "closing" else ["close"])


def test_close_is_called_for_head_and_bodiless_statuses(site, key):
    site.request("HEAD", f"/closing?key={key}")
    assert until(lambda: "close" in events(site, key))
    assert events(site, key).count("close") == 1


@pytest.mark.parametrize("name", ["raises_and_closes", "raises_in_iter"])
def test_close_is_called_once_after_an_exception(site, name, key):
    site.get(f"/{name}?key={key}")
    site.expect_log(r"HB040[12] .*RuntimeError")
    assert until(lambda: events(site, key)) == ["close"]


def test_an_exception_in_close_is_logged_and_the_response_stays_whole(site, key):
    response = site.get(f"/raises_in_close?key={key}")
    assert (response.status, response.body) == (200, b"whole")
    record = site.expect_log(r"HB0408 .*from close")
    assert "Traceback" in record.text
    assert events(site, key).count("close") == 1


# Content-Length


def test_an_application_s_content_length_is_kept(site, way):
    response = site.get(f"{way}/with_length")
    assert response.header("Content-Length") == "7" and response.header("Transfer-Encoding") is None
    assert response.body == b"one two"


@pytest.mark.parametrize("suffix", ["", "?list=1"], ids=["blocks", "list"])
def test_a_body_shorter_than_content_length_ends_visibly(site, suffix):
    response = site.get(f"/short{suffix}")
    assert response.broken and response.body == b"short"
    site.expect_log(r"HB0406 .*5 of the 100 bytes")


@pytest.mark.parametrize("suffix", ["", "?list=1"], ids=["blocks", "list"])
def test_a_body_longer_than_content_length_is_cut(site, suffix):
    with site.connect() as connection:
        connection.request("GET", f"/long{suffix}")
        response = connection.response()
        assert response.body == b"exact" and response.ending == "whole"
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello", "the surplus is not on the connection"
    site.expect_log(r"HB0407")


# Size


@pytest.mark.parametrize("options", ["", "&length=1", "&list=1", "&list=1&block=100000000", "&block=1000000"])
def test_big_bodies_arrive_whole(site, options):
    from behaviours.responses import pattern

    size = 12_345_678
    response = site.get(f"/big?size={size}{options}")
    assert response.ending == "whole" and len(response.body) == size
    assert response.body == pattern(size)


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 65535, 65536, 65537, 262144])
def test_bodies_around_buffer_sizes_arrive_whole(site, size):
    from behaviours.responses import pattern

    for options in ("", "&list=1"):
        assert site.get(f"/big?size={size}&block=100000{options}").body == pattern(size)


def test_thousands_of_small_blocks_arrive_whole(site):
    from behaviours.responses import pattern

    assert site.get("/big?size=30000&block=10").body == pattern(30000)


# wsgi.file_wrapper


@pytest.fixture
def big_file(stage):
    from behaviours.responses import pattern

    path = stage.root / "big.bin"
    if not path.exists():
        path.write_bytes(pattern(3_000_000))
        path.chmod(0o644)
    return path


@pytest.mark.parametrize(("offset", "length"), [(0, None), (1_000_000, None), (0, 1000), (500, 1_234_567), (3_000_000, None)])
def test_a_wrapped_file_goes_out_from_its_position(site, big_file, offset, length):
    data = big_file.read_bytes()[offset:]
    data = data[:length] if length else data
    suffix = f"&length={length}" if length else ""
    response = site.get(f"/wrapped_file?path={big_file}&offset={offset}{suffix}")
    assert response.ending == "whole" and response.body == data
    assert response.header("Content-Length") == str(len(data))


def test_a_wrapped_file_is_read_in_the_validator_too(site, big_file):
    assert site.get(f"/valid/wrapped_file?path={big_file}").body == big_file.read_bytes()


def test_a_wrapped_file_shorter_than_its_content_length_ends_visibly(site, big_file):
    response = site.get(f"/wrapped_file?path={big_file}&offset=2999000&length=5000")
    assert response.broken and len(response.body) == 1000
    site.expect_log("HB0406")


def test_a_wrapped_file_with_head_sends_no_body(site, big_file):
    with site.connect() as connection:
        connection.request("HEAD", f"/wrapped_file?path={big_file}")
        assert connection.response("HEAD").header("Content-Length") == "3000000"
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello"


def test_close_of_a_wrapped_file_is_called_once(site, big_file, key):
    assert len(site.get(f"/wrapped_closing?path={big_file}&key={key}").body) == 3_000_000
    assert until(lambda: events(site, key)) == ["close"]


def test_objects_that_are_no_files_are_read_with_the_block_size(site, way, key):
    assert site.get(f"{way}/wrapped_object?key={key}").body == b"one two three"
    assert until(lambda: "close" in events(site, key))
    assert events(site, key) == ["read 4000"] * 4 + ["close"]


@pytest.mark.parametrize(("name", "body"), [("wrapped_pipe", b"through a pipe"), ("wrapped_bytesio", b"3456789")])
def test_wrapped_things_without_a_size_arrive_whole(site, way, name, body):
    response = site.get(f"{way}/{name}")
    assert response.ending == "whole" and response.body == body


# HTTP/2


@pytest.mark.parametrize("name", ["hello", "generated", "written", "big?size=500000", "with_length"])
def test_http2_clients_get_the_same(serve, name):
    import httpx

    server = serve(
        "behaviours:application", nginx_listen=" http2", apache_modules=("http2",), apache="Protocols h2c http/1.1"
    )
    with httpx.Client(http1=False, http2=True, timeout=20, trust_env=False) as client:
        response = client.get(f"{server.url}/{name}")
        assert response.http_version == "HTTP/2" and response.status_code == 200
        assert re.match(rb"hello|one two|written twice|000000", response.content)
        assert client.post(f"{server.url}/digest", content=b"x" * 300000).json()[0] == 300000
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"{server.url}/raises_after_block")
        assert client.get(f"{server.url}/hello").content == b"hello"
    server.expect_log(r"HB0402")
