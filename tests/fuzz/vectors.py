"""What the test suites of other servers send, and the statuses that RFC 9110 and RFC 9112 want for it.

The facts come from gunicorn's valid and invalid requests, the suites of llhttp and h11, and published lists of
ways to smuggle requests; the requests are our own. As in `malformed`, nothing may be served of `SMUGGLED`.
"""

import string
from collections.abc import Iterator

from fuzz.malformed import SMUGGLED, Rows, get, post

_CLOSE = b"Connection: close"
_CHUNKED = b"Transfer-Encoding: chunked"
_LAST = b"0\r\n\r\n"
_OK = (200,)
_BAD = (400,)
_UNKNOWN = (501,)


def ask(*fields: bytes, line: bytes = b"GET /healthz HTTP/1.1", rest: bytes = b"") -> bytes:
    """A request with these fields and no others."""
    return b"\r\n".join([line, *fields, b"", rest])


def chunks(body: bytes, *fields: bytes) -> bytes:
    """A request with a chunked body, and another one behind it."""
    return post(_CHUNKED, *fields, body=body) + get(_CLOSE)


def broken(body: bytes) -> bytes:
    """A request with a body that cannot be parsed."""
    return post(_CHUNKED, body=body + SMUGGLED)


#: Requests that are right.
SOUND: Rows = {
    **{
        f"host {value!r}": (ask(b"Host:" + value, _CLOSE), _OK)
        for value in (
            b"", b" ", b" a", b"a", b"\ta\t", b" A.Example:80", b" a:", b" 0.0.0.0=5000", b" 127.0.0.1:8000", b" [::1]",
            b" [::ffff:192.0.2.1]:5000", b" [v7.a:b]", b" %C3%A4.example", b" a_b-c.~", b" xn--bcher-kva.example.",
        )
    },
    "a host at the end": (ask(b"X: y", _CLOSE, b"Host: a"), _OK),
    "a host in HTTP/1.0": (ask(b"Host: a", line=b"GET /healthz HTTP/1.0"), _OK),
    "no host in HTTP/1.0": (ask(line=b"GET /healthz HTTP/1.0"), _OK),
    "HEAD without a field": (ask(line=b"HEAD /healthz HTTP/1.0"), _OK),
    **{
        f"field {field!r}": (get(field, _CLOSE), _OK)
        for field in (
            b"aaaaaaaaaaaaa:++++++++++", b"!#$%&'*+-.^_`|~09AZaz: a", b"X:", b"X: ", b"X:\t", b"X:a", b"X: \t a b\t ",
            b'X: a:b,c;d="e\\"f" (g)', b"X: D\xc3\xbcsseldorf", b"X: \xff", b"X-Y_Z: a",
            b"Content-Length: 0", b"Content-Length: 000", b"TE: trailers", b"Keep-Alive: 300", b"Upgrade: h2c",
            b"Content-Type: text/plain", b"Trailer: X", b"Cookie: a=b; c=d", b"Max-Forwards: 0", b"Expect: ",
        )
    },
    "names in any case": (ask(b"hOsT: a", b"cOnNeCtIoN: ClOsE", b"cOnTeNt-LeNgTh: 0"), _OK),
    "ninety fields": (get(*[b"X: y"] * 90, _CLOSE), _OK),
    "a long field": (get(b"X: " + b"a" * 8000, _CLOSE), _OK),
    "one field twice": (get(b"Accept: a/b", b"Accept: c/d", _CLOSE), _OK),
    **{
        f"{method.decode()} {target.decode()}": (ask(b"Host: a", _CLOSE, line=b"%s %s HTTP/1.1" % (method, target)), statuses)
        for method, target, statuses in (
            (b"GET", b"/healthz?", _OK), (b"GET", b"/healthz?a=b&c==d&?/:@!$'()*,;~._-%41%2f", _OK), (b"GET", b"/healthz?a=b?", _OK),
            (b"GET", b"/healthz?http://a/", _OK), (b"GET", b"/%68ealthz", _OK), (b"GET", b"/HEALTHZ", (404,)),
            (b"GET", b"/a/./b/../c", (404,)), (b"GET", b"/healthz/", (404,)), (b"GET", b"/healthz%3F", (404,)), (b"GET", b"/healthz%23a", (404,)),
            (b"GET", b"http://A.example:80/healthz", _OK), (b"GET", b"HTTP://a/healthz", _OK), (b"GET", b"https://a/healthz?b", _OK),
            (b"GET", b"http://[::1]:5000/healthz", _OK), (b"GET", b"http://a?b", _OK), (b"GET", b"http://a:/", _OK),
            (b"GET", b"http://a/healthz%3F", (404,)), (b"GET", b"http://a/http://b/healthz", (404,)),
            (b"OPTIONS", b"/healthz", _OK), (b"OPTIONS", b"http://a/healthz", _OK), (b"DELETE", b"/flip", (405,)), (b"TRACE", b"/flip", (405,)),
            (b"PATCH", b"/flip", (405,)), (b"QUERY", b"/flip", (405,)), (b"PUT", b"/healthz", (405,)), (b"POST", b"/flip", _OK),
        )
    },
    "PUT with a body in HTTP/1.0": (
        ask(b"Content-Type: application/json", b"Content-Length: 7", line=b"PUT /flip?a=b HTTP/1.0", rest=b'{"a":1}'), (405,)
    ),
    "HTTP/1.0, kept": (
        ask(b"Connection: keep-alive", line=b"GET /healthz HTTP/1.0") + ask(line=b"GET /healthz HTTP/1.0"), (200, 200)
    ),
    "HTTP/1.0, kept, with a body": (
        ask(b"Connection: Keep-Alive", b"Content-Length: 5", line=b"POST /flip HTTP/1.0", rest=b"hello")
        + ask(line=b"GET /healthz HTTP/1.0"),
        (415, 200),
    ),
    "HTTP/1.0, then 1.1": (ask(b"Connection: keep-alive", line=b"GET /healthz HTTP/1.0") + get(_CLOSE), (200, 200)),
    "close among other options": (get(b"Connection: TE, close"), _OK),
    "keep-alive and close": (get(b"Connection: keep-alive", _CLOSE), _OK),
    "close and keep-alive": (get(_CLOSE, b"Connection: keep-alive"), _OK),
    "fields of a browser": (
        get(b"User-Agent: a/1.0 (b; c) d/2.0", b"Accept: a/b,*/*;q=0.8", b"Accept-Language: en", b"Accept-Encoding: gzip", b"Connection: keep-alive")
        + get(_CLOSE),
        (200, 200),
    ),
    "three kinds in one packet": (
        get() + post(b"Content-Length: 5", body=b"hello") + post(_CHUNKED, body=b"5\r\nhello\r\n" + _LAST) + get(_CLOSE),
        (200, 415, 415, 200),
    ),
    "an empty line between": (get() + b"\r\n" + get(_CLOSE), (200, 200)),
    "a body that looks like a request": (post(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED) + get(_CLOSE), (415, 200)),
    **{
        f"length {value!r}": (post(b"Content-Length:" + value, body=b"hello") + get(_CLOSE), (415, 200))
        for value in (b"5", b"   5  ", b"\t5\t", b" 0005")
    },
    **{
        f"chunks {body!r}": (chunks(body), (415, 200))
        for body in (
            b"a\r\n0123456789\r\n" + _LAST, b"A\r\n0123456789\r\n" + _LAST, b"00005\r\nhello\r\n000\r\n\r\n",
            b"5\r\nhello\r\n6\r\n world\r\n" + _LAST, b"5;a;b=c;d=e\r\nhello\r\n0;f\r\n\r\n", b'5;a="b \\" ; c"\r\nhello\r\n' + _LAST,
            b"5 ;a\r\nhello\r\n" + _LAST, b"5\r\nhello\r\n0\r\nVary: *\r\nX: y\r\n\r\n", b"2\r\n\r\n\r\n" + _LAST,
            b"%x\r\n%s\r\n" % (len(SMUGGLED), SMUGGLED) + _LAST, b"5; a\r\nhello\r\n0; b\r\n\r\n", b"5 ; a = b ; c\r\nhello\r\n" + _LAST,
        )
    },
    "chunked in capitals": (post(b"Transfer-Encoding: CHUNKED", body=b"5\r\nhello\r\n" + _LAST) + get(_CLOSE), (415, 200)),
    "chunked behind spaces": (post(b"Transfer-Encoding: \t chunked \t", body=b"5\r\nhello\r\n" + _LAST) + get(_CLOSE), (415, 200)),
    "chunks that OPTIONS has no use for": (
        ask(b"Host: a", _CHUNKED, line=b"OPTIONS /healthz HTTP/1.1", rest=b"%x\r\n%s\r\n" % (len(SMUGGLED), SMUGGLED) + _LAST) + get(_CLOSE),
        (200, 200),
    ),
    **{
        f"expectation {value!r}": (
            post(b"Expect: " + value, b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED) + get(_CLOSE), (415, 200)
        )
        for value in (b"y 100-continue", b"100-continue, a", b"100-Continue", b"200-ok")
    },
    "a content coding like a transfer coding": (
        post(b"Content-Encoding: chunked", b"Content-Length: %d" % len(_LAST + SMUGGLED), body=_LAST + SMUGGLED) + get(_CLOSE), (415, 200)
    ),
    "a trailer that is announced": (chunks(b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"Trailer: X"), (415, 200)),
}  # fmt: skip

#: Requests that must be refused, because they are wrong or nothing here knows what they ask for.
REFUSED: Rows = {
    **{
        f"line {line!r}": (ask(b"Host: a", line=line, rest=SMUGGLED), statuses)
        for line, statuses in (
            (b"GET /healthz ICE/1.0", _BAD), (b"GET /healthz IHTTP/1.0", _BAD), (b"PUT /healthz RTSP/1.0", _BAD), (b"GET /healthz HTTP/5.6", _BAD),
            (b"GET /healthz HTTP/1.2", _BAD), (b"GET /healthz HTTP/01.1", _BAD), (b"GET /healthz HTTP/1.1x", _BAD), (b"GET /healthz HTTP/1.1 x", _BAD), (b"GET /healthz HTTP /1.1", _BAD),
            (b"GET /healthz HTTP/1,1", _BAD), (b"GET /healthz HTTP/11", _BAD), (b"GET /healthz HTTP/-1.1", _BAD), (b"GET /healthz http/1.1", _BAD),
            (b"GET /healthz", _BAD), (b"GET /healthz ", _BAD), (b"GET/healthz HTTP/1.1", _BAD), (b"GET /health z HTTP/1.1", _BAD),
            (b" GET /healthz HTTP/1.1", _BAD), (b"\tGET /healthz HTTP/1.1", _BAD), (b"GET\x0b/healthz HTTP/1.1", _BAD), (b"/healthz HTTP/1.1", _BAD),
            (b"HTTP/1.1 200 OK", _BAD), (b"GE /healthz HTTP/1.1", _UNKNOWN), (b"G\xc3\x89T /healthz HTTP/1.1", _BAD), (b"GE#T /healthz HTTP/1.1", _UNKNOWN),
            (b"GET: /healthz HTTP/1.1", _BAD), (b'"GET" /healthz HTTP/1.1', _BAD), (b"GET\x00 /healthz HTTP/1.1", _BAD),
            (b"ANNOUNCE /healthz HTTP/1.0", _UNKNOWN), (b"MKCOLA /healthz HTTP/1.1", _UNKNOWN), (b"M-SEARCH * HTTP/1.1", _BAD),
            (b"M-SEARCH /healthz HTTP/1.1", _UNKNOWN), (b"PROPFIND /healthz HTTP/1.1", _UNKNOWN), (b"PURGE /healthz HTTP/1.1", _UNKNOWN),
            (b"GETT /healthz HTTP/1.1", _UNKNOWN), (b"WEBSOCKET /healthz HTTP/1.1", _UNKNOWN), (b"CONNECT a:80 HTTP/1.1", _UNKNOWN),
            (b"CONNECT [::1]:80 HTTP/1.1", _UNKNOWN), (b"G" * 20 + b" /healthz HTTP/1.1", _UNKNOWN), (b"G" * 21 + b" /healthz HTTP/1.1", _UNKNOWN),
        )
    },
    **{
        f"host {value!r}": (ask(b"Host: " + value, rest=SMUGGLED), _BAD)
        for value in (
            b"a b", b"a/b", b"a?b", b"a#b", b"u@a", b"u:p@a:80", b"http://a", b"a:b", b"a:80:81", b"a:-1", b"a:+80", b"::1", b"[::1", b"[]",
            b"[a]", b"[::1]a", b"[1::2::3]", b"[::1%25lo]", b'"a"', b"a, b", b"a\tb", b"a\\b", b"<a>", b"a\xe4", b"%", b"%4g", b"{{a}}",
        )
    },
    "a wrong host in HTTP/1.0": (ask(b"Host: a b", line=b"GET /healthz HTTP/1.0", rest=SMUGGLED), _BAD),
    "the same host twice": (ask(b"Host: a", b"Host: a", rest=SMUGGLED), _BAD),
    "two hosts in HTTP/1.0": (ask(b"Host: a", b"Host: b", line=b"GET /healthz HTTP/1.0", rest=SMUGGLED), _BAD),
    "a host before a space": (ask(b"Host : a", rest=SMUGGLED), _BAD),
    "an absolute target and no host": (ask(line=b"GET http://a/healthz HTTP/1.1", rest=SMUGGLED), _BAD),
    **{
        f"target {target!r}": (ask(b"Host: a", line=b"GET %s HTTP/1.1" % target, rest=SMUGGLED), _BAD)
        for target in (
            b"http:///healthz", b"http://:80/healthz", b"http://u@a/healthz", b"http://u:p@a/healthz", b"http://a:b/healthz", b"ftp://a/healthz",
            b"http:/a/healthz", b"http://a\\b/healthz", b"/healthz#", b"/healthz?a#b", b"http://a/healthz#b", b"http://a#b", b"a:80", b"a/b?c=http://d",
            b"*/healthz", b"*?", b"..", b"/healthz\x7f", b"/healthz\x01", b"/healthz\xc3\xa4", b"/healthz\t",
        )
    },
    **{
        f"field {field!r}": (get(field, end=SMUGGLED), _BAD)
        for field in (
            b"Fo@: x", b"Foo\x01test: x", b"name\r\n : value", b"(x): y", b"[x]: y", b"x/y: z", b'"x": y', b"x,y: z", b"X\t: y", b"X\x0b: y", b"\xc3\xa4: y",
            b"X: \x7f", b"X: \x07", b"X: a\x0bb", b"X: a\x0cb", b"X: a\r", b"X:\r", b"X: a\x00", b"\rX: a", b"X", b"X y", b":", b"X: y\r\n\tZ: a",
            b"x:\nTransfer-Encoding: chunked", b"x:\rTransfer-Encoding: chunked", b"Connection\r\x1b\x35\xd5eep-Alive",
            b"Content-Type: a/b\r\nContent-Type: c/d", b"Content\rLength: 38", b"Content Length: 38", b"Transfer Encoding: chunked",
        )
    },
    "a request line among the fields": (ask(b"Host: a", b"\rZGET /smuggled: HTTP/1.1", b"Host: a", rest=SMUGGLED), _BAD),
    "a space before the last line": (ask(b"Host: a", b" ", rest=SMUGGLED), _BAD),
    "a folded length": (post(b"X: y", b" Content-Length: 38", body=SMUGGLED), _BAD),
    "a length behind a bare LF": (post(b"X: y\nContent-Length: 38", body=SMUGGLED), _BAD),
    **{
        f"{first.decode()}, {second.decode()}": (post(first, second, body=_LAST + SMUGGLED), statuses)
        for first, second, statuses in (
            (b"Content-Length: 5", b"Content-Length: 6", _BAD), (b"Content-Length: 0", b"Content-Length: 0", _BAD),
            (b"Content-Length: 5", b"Content-Length:", _BAD), (b"Content-Length: 5", b"content-length: 6", _BAD),
            (_CHUNKED, _CHUNKED, _BAD), (_CHUNKED, b"Content-Length: 0", _BAD), (b"Content-Length: 6", _CHUNKED, _BAD),
            (b"Transfer-Encoding: gzip", _CHUNKED + b", gzip", _BAD), (b"Transfer-Encoding:", b"Content-Length: 5", _UNKNOWN),
            (b"Transfer-Encoding: identity", b"Content-Length: 5", _BAD), (b"Transfer-Encoding: gzip", b"Content-Length: 5", _BAD),
            (_CHUNKED, b"Transfer-Encoding: pigeons", _UNKNOWN), (b"Transfer-Encoding: pigeons", _CHUNKED, _UNKNOWN),
        )
    },
    **{
        f"coding {value!r}": (post(b"Transfer-Encoding: " + value, body=_LAST + SMUGGLED), statuses)
        for value, statuses in (
            (b"gzip", _BAD), (b"deflate, gzip", _BAD), (b"chunked, deflate", _BAD), (b"identity, identity", _BAD), (b"chunked,", _UNKNOWN),
            (b",chunked", _UNKNOWN), (b"chunked pigeons", _UNKNOWN), (b"chunked\xa0", _UNKNOWN), (b"chunkedchunked", _UNKNOWN), (b"br, chunked", _UNKNOWN),
        )
    },
    **{
        f"chunks {body!r}": (broken(body), _BAD)
        for body in (
            b"2 ab\r\nab\r\n" + _LAST, b"5;\r\nhello\r\n" + _LAST, b'5;a="b\r\nhello\r\n' + _LAST, b"5;a=\r\nhello\r\n" + _LAST, b"5;a b\r\nhello\r\n" + _LAST,
            b"5;=a\r\nhello\r\n" + _LAST, b"5\t\r\nhello\r\n" + _LAST, b"5 \r\nhello\r\n" + _LAST, b"g\r\n", b"\r\n5\r\nhello\r\n" + _LAST,
            b"5\r\nhello\r\n\r\n" + _LAST, b"5\r\nhell\r\n" + _LAST, b"0x0\r\n\r\n", b"5\r\nhello\r\n0\n\r\n", b"5\r\nhello\r\n0\r\n\n", b"5;a\rb\r\nhello\r\n" + _LAST,
            b"5\r\r;a\r\nhello\r\n" + _LAST, b"5\r\nhello\r_0\r\n\r\n", b"5\r\nhello_\n0\r\n\r\n", b"5 \n \r\nhello\r\n" + _LAST,
            b"5;\na\r\nhello\r\n" + _LAST, b"5\r\nhello\r\n0;a\nb\r\n\r\n", b"5\r\nhello\r\n0\r\nX: y\n\r\n",
            b"5\r\nhello\r\n0\r\n X: y\r\n\r\n", b"5\r\nhello\r\n0\r\nX\r\n\r\n", b"5\r\nhello\r\n0\r\nX : y\r\n\r\n", b"5\r\nhello\r\n0\r\nX: a\rb\r\n\r\n", b"5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
            b"5\r\nhello\r\n0\r\nHost: b\r\n\r\n", b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
    },
    "a chunked request in HTTP/1.0": (
        ask(b"Host: a", b"Connection: keep-alive", _CHUNKED, line=b"POST /flip HTTP/1.0", rest=_LAST + SMUGGLED), _BAD
    ),
}  # fmt: skip


def hidden() -> Iterator[tuple[str, tuple[bytes, tuple[int, ...]]]]:
    """Hide a transfer coding behind one byte, in each place: who overlooks the byte sees another body.

    The length that is sent as well holds for those who see no coding. Only letters, digits and some marks may
    be in a name, no control character in a value, and blanks around a value are not part of it.
    """
    token, blanks = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode(), b" \t"
    controls = bytes(byte for byte in (*range(32), 127) if byte not in blanks)
    for byte in (*controls, *blanks, *b"\"'(),/;=?[_\x80\x85\xa0\xad\xff"):
        odd = bytes([byte])
        in_name = (415,) if byte in token else _BAD
        in_value = _BAD if byte in controls or byte in blanks else _UNKNOWN
        for place, field, statuses in (
            ("before its name", b"%sTransfer-Encoding: chunked", in_name),
            ("in its name", b"Transfer-%sEncoding: chunked", in_name),
            ("behind its name", b"Transfer-Encoding%s: chunked", in_name),
            ("before its value", b"Transfer-Encoding:%schunked", in_value),
            ("behind its value", b"Transfer-Encoding: chunked%s", in_value),
            (
                "behind another value",
                b"X: y%sTransfer-Encoding: chunked",
                _BAD if byte in controls else (415,),
            ),
        ):
            whole = post(
                b"A: b",
                field % odd,
                b"Content-Length: %d" % len(_LAST + SMUGGLED),
                _CLOSE,
                body=_LAST + SMUGGLED,
            )
            yield f"{byte:#04x} {place}", (whole, statuses)


#: A coding that another server may see, or not see.
HIDDEN: Rows = dict(hidden())

TABLES: dict[str, Rows] = {"sound vectors": SOUND, "refused vectors": REFUSED, "hidden codings": HIDDEN}
