"""Requests that no client should send, byte for byte, and the statuses of the answers that each may get.

Where a request holds `SMUGGLED`, those bytes are part of a body, or come after a request that ends its
connection: a server that answers them can be made to send that answer to another client.
"""

import re
from itertools import product

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

Rows = dict[str, tuple[bytes, tuple[int, ...]]]


def post(*fields: bytes, body: bytes = b"", line: bytes = b"POST /flip HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: a", *fields, b"", body])


def get(*fields: bytes, target: bytes = b"/healthz", version: bytes = b"HTTP/1.1", end: bytes = b"") -> bytes:
    return b"\r\n".join([b"GET " + target + b" " + version, b"Host: a", *fields, b"", end])


def with_id(sent: bytes, request_id: str) -> bytes:
    """Give the first request an X-Request-ID, if it has a line to put it after."""
    field = b"\\1X-Request-ID: %s\r\n" % request_id.encode()
    return re.sub(rb"\A((?:\r\n)?[^\r\n]+\r\n)(?! )", field, sent, count=1)


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", b"Connection: close", *fields, body=body)


def form(body: bytes, content_type: bytes = b"multipart/form-data; boundary=cut") -> bytes:
    fields = b"Content-Type: " + content_type, b"Content-Length: %d" % len(body), b"Connection: close"
    return post(*fields, body=body)


def part(head: bytes, content: bytes = b"hello") -> bytes:
    return b"--cut\r\n" + head + b"\r\n\r\n" + content + b"\r\n--cut--\r\n"


_HIDDEN = b"Content-Length: %d" % len(SMUGGLED)
_HIDDEN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
_TWO_WAYS = b"0\r\n\r\n" + SMUGGLED
_CHUNK = b"5\r\nhello\r\n"
_LAST = b"0\r\n\r\n"
_DISPOSITION = b'Content-Disposition: form-data; name="image"; filename="a"'

#: The body's length is said in two ways, or in a way that another server may read differently.
FRAMING: Rows = {
    "length and chunks": (post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=_TWO_WAYS), (400,)),
    "chunks and length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=_TWO_WAYS), (400,)),
    "a length of thousands of digits": (post(b"Content-Length: " + b"9" * 5000, body=SMUGGLED), (400,)),
    "two lengths": (post(b"Content-Length: 0", _HIDDEN, body=SMUGGLED), (400,)),
    "the same length twice": (post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), (400,)),
    **{
        f"length {value!r}": (post(b"Content-Length: " + value, body=SMUGGLED), (400,))
        for value in (
            b"5, 5", b"5,6", b"+5", b"-5", b"-0", b"0x5", b"5_0", b"5.0", b"1e1", b"", b"five", b"5 5", b"\xd9\xa5",
            b"\xb2", b"5;", b'"5"', b"\x0b5", b"5\x00",
        )
    },
    **{
        f"coding {value!r}": (post(b"Transfer-Encoding: " + value, body=_TWO_WAYS), statuses)
        for value, statuses in {
            b"xchunked": (501,), b"chunked, identity": (400,), b"chunked, chunked": (400,),
            b"chunked, gzip": (400,), b"identity": (400,), b"\x0bchunked": (400,), b"chunked\x00": (400,),
            b'"chunked"': (501,), b"": (501,), b",": (501,), b"chunked;q=1": (501,), b"chunke\xe4": (501,),
        }.items()
    },
    **{
        f"a coding that is not undone: {value!r}": (post(b"Transfer-Encoding: " + value, body=_CHUNK + _LAST + SMUGGLED), (501,))
        for value in (b"gzip, chunked", b"deflate,chunked", b"compress, chunked", b"x-gzip, chunked", b"gzip, deflate, Chunked", b"identity, chunked")
    },
    "a coding in a field of its own": (
        post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=_CHUNK + _LAST + SMUGGLED), (501,)
    ),
    "coding after space": (post(b"Transfer-Encoding : chunked", b"Content-Length: 4", body=_TWO_WAYS), (400,)),
    "coding after tab": (post(b"Transfer-Encoding\t: chunked", b"Content-Length: 4", body=_TWO_WAYS), (400,)),
    "coding on the next line": (post(b"Transfer-Encoding:\r\n chunked", b"Content-Length: 4", body=_TWO_WAYS), (400,)),
    "coding in a folded line": (post(b"X: a\r\n Transfer-Encoding: chunked", b"Content-Length: 4", body=_TWO_WAYS), (400,)),
    "coding behind a bare CR": (post(b"X: a\rTransfer-Encoding: chunked", b"Content-Length: 4", body=_TWO_WAYS), (400,)),
    "two codings": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=_TWO_WAYS), (400,)),
    "chunks in HTTP/1.0": (
        post(b"Transfer-Encoding: chunked", body=_TWO_WAYS, line=b"POST /flip HTTP/1.0"), (400,)
    ),
    "coding with an underscore": (post(b"Transfer_Encoding: chunked", _HIDDEN, b"Connection: close", body=SMUGGLED), (415,)),
}  # fmt: skip

#: Bodies that are not read; they must not become requests.
UNREAD: Rows = {
    **{
        name: (sent + get(b"Connection: close"), (status, 200))
        for name, sent, status in (
            ("GET with a body", get(_HIDDEN, end=SMUGGLED), 200),
            ("GET with chunks", get(b"Transfer-Encoding: chunked", end=_HIDDEN_CHUNKS), 200),
            ("HEAD with a body", post(_HIDDEN, body=SMUGGLED, line=b"HEAD /healthz HTTP/1.1"), 200),
            ("unknown path", post(_HIDDEN, body=SMUGGLED, line=b"POST /nope HTTP/1.1"), 404),
            ("unknown path, chunks", post(b"Transfer-Encoding: chunked", body=_HIDDEN_CHUNKS, line=b"POST /nope HTTP/1.1"), 404),
            ("wrong method", post(_HIDDEN, body=SMUGGLED, line=b"PUT /flip HTTP/1.1"), 405),
            ("wrong parameter", post(_HIDDEN, body=SMUGGLED, line=b"POST /flip?x=1 HTTP/1.1"), 400),
            ("unknown path, 100", post(b"Expect: 100-continue", _HIDDEN, body=SMUGGLED, line=b"POST /nope HTTP/1.1"), 404),
        )
    },
    "too large": (post(b"Content-Length: 1000000000000", body=SMUGGLED), (413,)),
    "a length beyond numbers": (post(b"Content-Length: " + b"9" * 30, body=SMUGGLED), (413,)),
    "after the last request": (get(b"Connection: close", end=SMUGGLED), (200,)),
    "after HTTP/1.0": (get(version=b"HTTP/1.0", end=SMUGGLED), (200,)),
    "in a form without an end": (form(b"--cut\r\n" + _DISPOSITION + b"\r\n\r\n" + SMUGGLED), (400,)),
    "after an upgrade to HTTP/2": (get(b"Connection: Upgrade, HTTP2-Settings, close", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ", end=SMUGGLED), (200,)),
}  # fmt: skip

CHUNKS: Rows = {
    **{
        f"size {size!r}": (chunked(size + b"\r\nhello\r\n" + _LAST + SMUGGLED), (400,))
        for size in (
            b"-5", b"+5", b" 5", b"0x5", b"5_0", b"", b";a=b", b"five", b"5h", b"\xd9\xa5", b"5,", b"5\x00", b"5\x0b",
        )
    },
    "no end of a chunk": (chunked(b"5\r\nhello0\r\n\r\n" + SMUGGLED), (400,)),
    "a chunk longer than its size": (chunked(b"5\r\nhelloX\r\n" + _LAST + SMUGGLED), (400,)),
    "bare LF after a size": (chunked(b"5\nhello\r\n" + _LAST + SMUGGLED), (400,)),
    "bare LF after a chunk": (chunked(b"5\r\nhello\n0\r\n\r\n" + SMUGGLED), (400,)),
    "bare CR after a size": (chunked(b"5\rhello\r\n" + _LAST + SMUGGLED), (400,)),
    "bare LF in an extension": (chunked(b"5;a\nhello\r\n" + _LAST + SMUGGLED), (400,)),
    "an extension": (chunked(b'5;a="b"\r\nhello\r\n' + _LAST + SMUGGLED), (415,)),
    "an endless extension": (chunked(b"5;" + b"a" * 1_000_000), (400,)),
    "an extension for each byte": (chunked((b"1;" + b"a" * 60 + b"\r\nx\r\n") * 20_000 + _LAST), (415,)),
    "an endless size": (chunked(b"0" * 1_000_000), (400,)),
    "a trailer": (chunked(_CHUNK + b"0\r\nX: y\r\n\r\n" + SMUGGLED), (415,)),
    "a trailer with a length": (chunked(_CHUNK + b"0\r\n" + _HIDDEN + b"\r\n\r\n" + SMUGGLED), (400,)),
    "a size of many digits": (chunked(b"0" * 5000 + b"5\r\nhello\r\n" + _LAST + SMUGGLED), (415,)),
    "an endless trailer": (chunked(_CHUNK + b"0\r\nX: " + b"a" * 1_000_000), (431,)),
    "endless trailers": (chunked(_CHUNK + b"0\r\n" + b"X: y\r\n" * 100_000), (431,)),
    "a trailer that is none": (chunked(_CHUNK + b"0\r\n" + SMUGGLED), (400,)),
}  # fmt: skip

HEADS: Rows = {
    "bare LFs": (b"GET /healthz HTTP/1.1\nHost: a\n\n" + SMUGGLED, (400,)),
    "no host": (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", (400,)),
    "a bare LF": (get(b"X: a\nY: b"), (400,)),
    "a bare CR": (get(b"X: a\rY: b"), (400,)),
    "NUL in a value": (get(b"X: a\0b"), (400,)),
    "NUL in a name": (get(b"X\0: a"), (400,)),
    "NUL in a path": (get(target=b"/\0"), (400,)),
    "folding": (get(b"X: a\r\n b"), (400,)),
    "folding at once": (b"GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", (400,)),
    "no colon": (get(b"X"), (400,)),
    "no name": (get(b": a"), (400,)),
    "a space in a name": (get(b"X Y: a"), (400,)),
    "a space before the colon": (get(b"X : a"), (400,)),
    "a name in Latin-1": (get(b"\xe4: a"), (400,)),
    "a value in Latin-1": (get(b"X: \xe4", b"Connection: close"), (200,)),
    "two hosts": (get(b"Host: b"), (400,)),
    "two schemes": (get(b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"), (400,)),
    "a thousand fields": (get(*[b"X: y"] * 1000), (431,)),
    "100000 fields": (get(*[b"X: y"] * 100_000), (431,)),
    "a long field": (get(b"X: " + b"a" * 100_000), (431,)),
    "a long name": (get(b"X" * 100_000 + b": a"), (431,)),
    "a field without end": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000, (431,)),
    "a line without end": (b"GET /" + b"a" * 1_000_000, (414,)),
    "a long query": (get(target=b"/flip?" + b"a" * 10_000), (414,)),
    "a long method": (b"G" * 1_000_000, (414,)),
    **{
        f"method {method!r}": (method + b" /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (501,))
        for method in (b"get", b"F!", b"Purge", b"OP", b"X", b"!#$%&'*+-.^_`|~09AZaz", b"G" * 30)
    },
    "a method of almost a line": (b"G" * 4000 + b" /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (501,)),
    "a method longer than a line": (b"G" * 5000 + b" /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (414,)),
    "no method": (b" /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "a method that is none": (b"G@T /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "a method of tomorrow": (b"BREW /flip HTTP/1.1\r\nHost: a\r\n\r\n", (501,)),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", (400,)),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", (400,)),
    **{f"version {version!r}": (get(version=version), (400,)) for version in (
        b"HTTP/1", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.10", b"HTTP/1.1 ", b"HTTP/+1.1", b"http/1.1", b"HTCPCP/1.0", b"HTTP/1.\xb2",
    )},
    "tabs": (b"GET\t/healthz\tHTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "two spaces": (b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "an empty line first": (b"\r\n" + get(b"Connection: close"), (200,)),
    "100000 empty lines": (b"\r\n" * 100_000, (400,)),
    "TLS": (b"\x16\x03\x01\2\0\1\0\1\xfc\3\3" + bytes(300) + b"\r\n\r\n", (400,)),
    "SSH": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", (400,)),
    "the PROXY protocol": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get(), (400,)),
    "zeros": (bytes(10_000) + b"\r\n\r\n", (414,)),
}  # fmt: skip

TARGETS: Rows = {
    f"{method.decode()} {target.decode('latin-1')}": (
        post(b"Connection: close", line=b"%s %s HTTP/1.1" % (method, target)), (status,)
    )
    for method, target, status in (
        (b"CONNECT", b"a:80", 501), (b"CONNECT", b"/flip", 501), (b"OPTIONS", b"*", 404), (b"GET", b"*", 400),
        (b"GET", b"http://a/healthz", 200), (b"GET", b"http://other:1/healthz", 200), (b"GET", b"http://", 400), (b"GET", b"http://[/healthz", 400),
        (b"GET", b"//healthz", 200), (b"GET", b"/../healthz", 404),
        (b"GET", b"/%2e%2e/healthz", 404), (b"GET", b"/%00", 404), (b"GET", b"/%zz", 404), (b"GET", b"/%", 404),
        (b"GET", b"/%ff%fe", 404), (b"GET", b"/\xff", 400), (b"GET", b"/healthz#a", 400), (b"GET", b"/healthz;a", 404),
        (b"GET", b"\\healthz", 400), (b"GET", b"healthz", 400), (b"GET", b"?", 400), (b"GET", b"/healthz?%", 200),
        (b"GET", b"/%0d%0aX:%20y", 404),
        (b"POST", b"/flip?format=%00png", 400), (b"POST", b"/flip?%", 400), (b"POST", b"/flip?%ff=%fe", 400),
        (b"POST", b"/flip?format=png%0d%0aX:y", 400), (b"POST", b"/flip?=", 400), (b"POST", b"/flip?&&&", 200),
        (b"POST", b"/flip?\xff", 400),
    )
}  # fmt: skip

EXPECTATIONS: Rows = {
    "100, and a body": (post(b"Expect: 100-continue", b"Content-Length: 5", b"Connection: close", body=b"hello"), (415,)),
    "100, twice": (post(b"Expect: 100-continue", b"Expect: 100-continue", b"Content-Length: 5", b"Connection: close", body=b"hello"), (415,)),
    "100, no body": (get(b"Expect: 100-continue", b"Connection: close"), (200,)),
    "100, HTTP/1.0": (post(b"Expect: 100-continue", b"Content-Length: 5", line=b"POST /flip HTTP/1.0", body=b"hello"), (415,)),
    "something else": (get(b"Expect: the unexpected", b"Connection: close"), (200,)),
    "a flood": (get(*[b"Expect: 100-continue"] * 90, b"Connection: close"), (200,)),
}  # fmt: skip

FORMS: Rows = {
    "no boundary": (form(b"hello", b"multipart/form-data"), (400,)),
    "an empty boundary": (form(b"--\r\n", b"multipart/form-data; boundary="), (400,)),
    "a long boundary": (form(b"hello", b"multipart/form-data; boundary=" + b"a" * 5000), (400,)),
    "a boundary in Latin-1": (form(b"hello", b"multipart/form-data; boundary=\xe4"), (400,)),
    "two boundaries": (form(part(_DISPOSITION), b"multipart/form-data; boundary=cut; boundary=other"), (400,)),
    "a quoted boundary": (form(part(_DISPOSITION), b'multipart/form-data; boundary="cut"'), (415,)),
    "half a quoted boundary": (form(part(_DISPOSITION), b'multipart/form-data; boundary="cut'), (400,)),
    "no header": (form(part(b"X: y")), (400,)),
    "no name": (form(part(b'Content-Disposition: form-data; filename="a"')), (415,)),
    "NUL in a file name": (form(part(b'Content-Disposition: form-data; name="image"; filename="\0"')), (415,)),
    "an odd extended file name": (form(part(b"Content-Disposition: form-data; name=image; filename*=nope''%ff%")), (400,)),
    "a long part header": (form(part(_DISPOSITION + b"\r\nX: " + b"a" * 100_000)), (400,)),
    "100000 part headers": (form(part(_DISPOSITION + b"\r\nX: y" * 100_000)), (400,)),
    "a part header that is none": (form(part(_DISPOSITION + b"\r\nnonsense")), (415,)),
    "a part in base64": (form(part(_DISPOSITION + b"\r\nContent-Transfer-Encoding: base64")), (400,)),
    "a form in a form": (form(part(b"Content-Type: multipart/mixed; boundary=in", b"--in\r\n\r\n--in--")), (400,)),
    "10000 parts": (form((b"--cut\r\n" + _DISPOSITION + b"\r\n\r\na\r\n") * 10_000 + b"--cut--\r\n"), (400,)),
    "10000 empty parts": (form(b"--cut\r\n\r\n\r\n" * 10_000 + b"--cut--\r\n"), (400,)),
    "a boundary without its line": (form(b"--cut" + _DISPOSITION + b"\r\n\r\nhello\r\n--cut--"), (400,)),
    "an endless preamble": (form(b"\r\n" * 500_000), (400,)),
    "bare LFs": (form(part(_DISPOSITION).replace(b"\r\n", b"\n")), (400,)),
}  # fmt: skip

#: More than one request in one go: each gets its own answer.
PIPELINES: Rows = {
    "two": (get() + get(b"Connection: close"), (200, 200)),
    "garbage after a body": (post(b"Content-Length: 5", body=b"helloGARBAGE\r\n\r\n"), (415, 400)),
    "garbage after no body": (get() + b"\x00\x01\x02\r\n\r\n", (200, 400)),
    "an empty line after a body": (post(b"Content-Length: 5", body=b"hello\r\n" + get(b"Connection: close")), (415, 200)),
}  # fmt: skip

#: The client says it will send no more, in the middle.
HALF_CLOSED: dict[str, bytes] = {
    "at once": b"",
    **{
        f"after {count} bytes of {name}": whole[:count]
        for (name, whole), count in product(
            {
                "a head": get(),
                "a body": post(_HIDDEN, body=SMUGGLED),
                "chunks": chunked(_CHUNK + _LAST),
            }.items(),
            (1, 20, 30),
        )
    },
    "in a body": post(b"Content-Length: 100", body=b"hello"),
    "in a chunk": chunked(b"64\r\nhello"),
    "in a chunk beyond numbers": chunked(b"F" * 17 + b"\r\n" + SMUGGLED),
    "between chunks": chunked(_CHUNK),
    "in a form": form(part(_DISPOSITION))[:-10],
}

TABLES: dict[str, Rows] = {
    "framing": FRAMING,
    "unread": UNREAD,
    "chunks": CHUNKS,
    "heads": HEADS,
    "targets": TARGETS,
    "expectations": EXPECTATIONS,
    "forms": FORMS,
    "pipelines": PIPELINES,
}
