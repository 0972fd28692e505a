"""The functions of gunicorn and asyncio that we override or rely on are as they were when we looked at them.

`.venv/bin/python tests/contracts/test_upstream.py` prints the table for what is installed.
"""

import hashlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tokenize
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

#: The version of Python whose asyncio was looked at.
PYTHON = (3, 11)

#: The ADR to read again, and a digest of the signature and the source of each function.
TABLE: dict[str, dict[str, str]] = {
    "0002": {
        "gunicorn.asgi.protocol:ASGIProtocol._on_body": "2f84cb2ae12e8f7c",
        "gunicorn.asgi.protocol:ASGIProtocol._http1_buffered": "e49e3cd5c48b174b",
        "gunicorn.asgi.parser:PythonProtocol.feed": "746f2e1bbe352517",
        "gunicorn.asgi.parser:PythonProtocol._parse_body": "0bdc27a14ab90049",
        "gunicorn.asgi.parser:PythonProtocol.remaining": "c753fd279b796fbd",
        "gunicorn.asgi.parser:PythonProtocol.reset": "172bebb016487e83",
        "asyncio.selector_events:_SelectorSocketTransport._read_ready__get_buffer": "3835f81bb0fd4cc1",
        "gunicorn.asgi.parser:PythonProtocol._finalize_headers": "492d46d5aded54bd",
        "gunicorn.asgi.protocol:ASGIProtocol._on_message_complete": "39abba7ea4446bf1",
        "gunicorn.asgi.protocol:ASGIProtocol._pause_reading": "70b516b674226e18",
        "gunicorn.asgi.protocol:BodyReceiver.feed": "34b33383345dfb21",
        "gunicorn.asgi.protocol:BodyReceiver._pop_chunk": "51bccfea6c1fd5bd",
        "gunicorn.asgi.protocol:BodyReceiver._build_receive_result": "4f2f9c8e9347926c",
    },
    "0004": {
        "gunicorn.workers.base:Worker.__init__": "19b2faea6af3d644",
        "gunicorn.workers.workertmp:WorkerTmp.__init__": "775f6d6a10d85d19",
        "gunicorn.workers.workertmp:WorkerTmp.notify": "b9f92d495feec8cb",
        "gunicorn.workers.workertmp:WorkerTmp.last_update": "b7e77fdd3d304639",
        "gunicorn.workers.base:Worker.init_process": "c862dadbe9426203",
        "gunicorn.workers.gasgi:ASGIWorker.__init__": "96d082b964565bea",
        "gunicorn.workers.gasgi:ASGIWorker._setup_event_loop": "6068158a7d0052c5",
        "gunicorn.workers.gasgi:ASGIWorker.load_wsgi": "4e4a3fc539eee3ac",
        "gunicorn.workers.gasgi:ASGIWorker._serve": "a1aa90378dd75334",
        "gunicorn.asgi.protocol:ASGIProtocol.__init__": "1fe82c487f25207f",
        "gunicorn.asgi.protocol:ASGIProtocol.connection_made": "0b6d6d7ec530bdc3",
        "gunicorn.asgi.protocol:ASGIProtocol.connection_lost": "dff1ffa7bf26e2b1",
        "gunicorn.asgi.protocol:ASGIProtocol.data_received": "a48cae100b8a3001",
        "gunicorn.asgi.protocol:ASGIProtocol._feed_callback_parser": "611060793bf9263d",
        "gunicorn.asgi.protocol:ASGIProtocol._on_headers_complete": "7439511527543c6e",
        "gunicorn.asgi.protocol:ASGIProtocol._handle_connection": "c10ed13614600b4c",
        "gunicorn.asgi.protocol:ASGIProtocol._serve_http_request": "0f953cf5c35d6162",
        "gunicorn.asgi.protocol:ASGIProtocol._handle_http_request": "750005ef9d800ec8",
        "gunicorn.asgi.protocol:ASGIProtocol._build_http_scope": "2ad58250d46e2b8a",
        "gunicorn.asgi.protocol:ASGIProtocol._handle_h1c_exception": "c02e91493f117751",
        "gunicorn.asgi.protocol:ASGIProtocol._send_response_start": "d7ff67a9a12c4756",
        "gunicorn.asgi.protocol:ASGIProtocol._send_error_response": "7bcc31adb012ba9c",
        "gunicorn.asgi.protocol:ASGIProtocol._safe_write": "11de4904af83ac03",
        "gunicorn.asgi.protocol:ASGIProtocol._close_transport": "6349d56b55c8bc0d",
        "gunicorn.asgi.protocol:ASGIProtocol._resume_reading": "f0406509976e6c0c",
        "gunicorn.asgi.protocol:ASGIProtocol._is_websocket_upgrade": "4befbe1a3db22393",
        "gunicorn.asgi.protocol:ASGIProtocol._effective_peername": "2ec4c88b21dda582",
        "gunicorn.asgi.protocol:BodyReceiver.receive": "011a2342aa179408",
        "gunicorn.asgi.protocol:BodyReceiver._wait_for_data": "004a78d9c7e71b0c",
        "gunicorn.asgi.protocol:BodyReceiver._wake_waiter": "a802c3a316fecc9e",
        "gunicorn.asgi.protocol:ASGIProtocol._setup_callback_parser": "562ee30cc4c26442",
        "gunicorn.asgi.protocol:ASGIProtocol._is_buffer_full": "b5506a4bbb5471d7",
        "gunicorn.asgi.protocol:ASGIProtocol._maybe_resume_reading": "6c6a9e22855d1693",
        "gunicorn.asgi.protocol:_check_trusted_proxy": "903529185df6497b",
        "gunicorn.asgi.protocol:_normalize_sockaddr": "e85f1e3a57f97789",
        "gunicorn.asgi.parser:PythonProtocol.__init__": "997084aa26f6d6e3",
        "gunicorn.asgi.parser:PythonProtocol._find_line": "424d87b2ee6690e6",
        "gunicorn.asgi.parser:PythonProtocol._parse_request_line": "2295af1487d5d5fa",
        "gunicorn.asgi.parser:PythonProtocol._parse_headers": "890b1e01a1cb80e2",
        "gunicorn.asgi.parser:PythonProtocol._parse_chunked_body": "4deee74ecc58a811",
        "gunicorn.asgi.parser:PythonProtocol._is_valid_method": "4c6c70c32b8bf89a",
        "gunicorn.asgi.parser:PythonProtocol._is_valid_token": "2c69a85100b2e882",
        "gunicorn.asgi.parser:PythonProtocol._has_invalid_header_chars": "4170d04b3017bbd6",
        "gunicorn.asgi.parser:CallbackRequest.from_parser": "00b1014b04c1de34",
        "gunicorn.asgi.parser:CallbackRequest.should_close": "5582a753d32f7a1b",
        "gunicorn.glogging:Logger.setup": "bca564a2efe376d8",
        "gunicorn.glogging:Logger._set_handler": "0b4f8f83aa5d19e6",
        "asyncio.base_events:BaseEventLoop.create_server": "68286e9fbf40d618",
        "asyncio.base_events:Server._start_serving": "4c7923b4acc77de5",
        "asyncio.selector_events:BaseSelectorEventLoop._start_serving": "57d5cd4beabc5410",
        "asyncio.selector_events:BaseSelectorEventLoop._accept_connection": "50d9a635f76d6b06",
        "asyncio.selector_events:BaseSelectorEventLoop._accept_connection2": "0c76d59ee8fc8c6c",
        "asyncio.sslproto:SSLProtocol._start_shutdown": "a77318c7b3bbdb69",
        "asyncio.selector_events:_SelectorSocketTransport._read_ready__on_eof": "03418ffe7e7b6c57",
        "asyncio.selector_events:_SelectorTransport.close": "ac7a66acc45c66c6",
    },
    "0009": {
        "gunicorn.asgi.protocol:ASGIProtocol._will_close": "3adc940948189a26",
        "gunicorn.workers.gasgi:ASGIWorker.init_signals": "605a65052920fe9b",
        "gunicorn.workers.gasgi:ASGIWorker.handle_exit_signal": "a1fe11bfb0eb6e35",
        "gunicorn.workers.gasgi:ASGIWorker._shutdown": "f6602a7909e1c15b",
        "gunicorn.asgi.lifespan:LifespanManager.startup": "804768f60919cdd1",
        "gunicorn.asgi.lifespan:LifespanManager.shutdown": "76b72290c1c4a837",
        "gunicorn.arbiter:Arbiter.reload": "6346d59b8676746b",
        "gunicorn.arbiter:Arbiter.reexec": "83cad6f7ee145009",
        "gunicorn.arbiter:Arbiter.spawn_worker": "2f58b98a4da15896",
        "gunicorn.arbiter:Arbiter.reap_workers": "e5277bf8ec769c47",
        "gunicorn.arbiter:Arbiter.murder_workers": "f696d398f0c175d5",
        "gunicorn.arbiter:Arbiter.manage_workers": "0905229e1557a332",
        "gunicorn.arbiter:Arbiter.handle_term": "ee1e8c3ccea7dd28",
    },
    "0012": {
        "gunicorn.asgi.protocol:ASGIProtocol._arm_keepalive_timer": "86d6327946a4c888",
        "gunicorn.asgi.protocol:ASGIProtocol._keepalive_timeout": "d8d1559396fd033b",
        "gunicorn.asgi.protocol:ASGIProtocol._send_body": "0772043c104dc47a",
        "asyncio.sslproto:SSLProtocol.__init__": "60907f13e14f460a",
        "asyncio.sslproto:SSLProtocol.connection_made": "cf79eb62da3e7d32",
        "asyncio.selector_events:_SelectorTransport.get_write_buffer_size": "6f1944df9b70b159",
    },
    "0018": {
        "gunicorn.arbiter:Arbiter.start": "65e8cbb4432a3b9d",
        "gunicorn.arbiter:Arbiter.run": "5dbdcaf9650c935d",
        "gunicorn.arbiter:Arbiter.wait_for_signals": "a25c6c34e36198bd",
        "gunicorn.arbiter:Arbiter.halt": "c9ebbb7edf4a5d25",
        "gunicorn.arbiter:Arbiter.stop": "e159f0155c964e2a",
    },
}

ADRS = {
    "0002": "docs/adr/0002-workers-and-engines.md",
    "0004": "docs/adr/0004-our-gunicorn-worker.md",
    "0009": "docs/adr/0009-preflight-before-reload-drain-before-close.md",
    "0012": "docs/adr/0012-minimum-transfer-rates-for-slow-clients.md",
    "0018": "docs/adr/0018-embedded-store.md",
}


def watched() -> list[tuple[str, str]]:
    """The names of the table with their ADRs; those of asyncio only for the Python that was looked at."""
    return [
        (adr, name)
        for adr, names in TABLE.items()
        for name in names
        if not name.startswith("asyncio") or sys.version_info[:2] == PYTHON
    ]


def digest(name: str) -> str:
    """Digest a function's signature and source, without its comments and docstring.

    Of the text, not of tokens or a syntax tree: those differ between versions of Python.
    """
    function: Callable[..., Any] = inspect.unwrap(pkgutil.resolve_name(name))
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    before = tokenize.NEWLINE
    for token in [*tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline)]:
        is_docstring = token.type == tokenize.STRING and before in {tokenize.NEWLINE, tokenize.INDENT}
        if token.type == tokenize.COMMENT or is_docstring:
            for row in range(token.start[0] - 1, token.end[0]):
                lines[row] = lines[row][: token.start[1]] if row == token.start[0] - 1 else ""
        elif token.type != tokenize.NL:
            before = token.type
    code = [line.rstrip() for line in lines if line.strip()]
    return hashlib.sha256("\n".join([str(inspect.signature(function)), *code]).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("adr", "name"), watched())
def test_what_we_rely_on_has_not_changed(adr: str, name: str) -> None:
    assert digest(name) == TABLE[adr][name], (
        f"{name.replace(':', '.')} has changed: read {ADRS[adr]} again, look at what the function does now, "
        "adapt what overrides or calls it, and then record it with the output of "
        "`.venv/bin/python tests/contracts/test_upstream.py`."
    )


@pytest.mark.parametrize("path", ADRS.values())
def test_the_records_to_read_again_are_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_a_comment_changes_nothing_and_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [
        'def f(a):\n    """Say."""\n    # why\n    return a\n',
        "def f(a):\n\n    return a\n",
        "def f(a):\n    return a + 1\n",
    ]
    digests = []
    for source in sources:
        monkeypatch.setattr(inspect, "getsource", lambda _, source=source: source)
        digests.append(digest("json:loads"))
    assert digests[0] == digests[1] != digests[2]


def test_gunicorn_is_pinned_to_the_version_that_was_looked_at() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'"gunicorn([=<>~!].*?)"', text) == [f"=={version('gunicorn')}"]


if __name__ == "__main__":
    for record, names in TABLE.items():
        for name in names:
            sys.stdout.write(f'"{record}" "{name}": "{digest(name)}"\n')
