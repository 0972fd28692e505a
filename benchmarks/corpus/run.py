"""One file after the other: sent by every order, and every answer judged."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.corpus import metadata
from benchmarks.corpus.canvases import TURNS
from benchmarks.corpus.decoders import FORM_OF, Unreadable, opened_by
from benchmarks.corpus.judge import Answer, Judgement, Order, Source, is_lossy, judge, twice_fault
from benchmarks.corpus.programs import Failed, Missing

#: The operation for each format that is asked for: each has another one, and none is left out.
_TURN_TO = {
    "jpeg": "transverse",
    "png": "flip",
    "webp": "rotate?angle=90",
    "gif": "flop",
    "tiff": "rotate?angle=270",
    "bmp": "transpose",
    "avif": "rotate?angle=180",
}

_LOSSLESS = frozenset({"png", "gif", "tiff", "bmp", "pnm", "qoi", "webp", "jpeg"})

#: How long one file may take by default, in seconds; what is left of its orders is not judged.
FILE_S = 240.0

_ANSWER_S = 120.0
_RETRIES = 20


class Verdict(StrEnum):
    """What became of one order."""

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"
    FAILED = "5xx"
    DISPUTED = "disputed"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True)
class Row:
    """One order for one file, as it is written to `report.jsonl`.

    Attributes:
        file: below the directory.
        request: path and query.
        status: of the answer, 0 for none.
        problem: the last part of a problem's type.
        detail: of the problem, or why nothing could be judged.
        differs: what is wrong or disputed, each with its kind in front.
        opened_by: for a refusal: which programs open the file.
        path: `X-Image-Path`.
        kept: where input and output are kept.
    """

    file: str
    request: str
    verdict: Verdict
    status: int = 0
    problem: str = ""
    detail: str = ""
    differs: tuple[str, ...] = ()
    opened_by: tuple[str, ...] = ()
    path: str = ""
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run over a directory tree.

    Attributes:
        url: of the service.
        root: the directory.
        into: where what is wrong is kept.
        turns, formats: a choice of operations and formats; all of them if empty.
        at_once: how many files at the same time.
        file_s: how long one may take, in seconds.
        known: digests of what was sent.
    """

    url: str
    root: Path
    into: Path
    turns: Sequence[str] = ()
    formats: Sequence[str] = ()
    at_once: int = 2
    file_s: float = FILE_S
    known: set[str] = field(default_factory=set)

    def files(self) -> list[Path]:
        """Return the files to send, in order, each content once."""
        found = []
        for file in sorted(path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest not in self.known:
                self.known.add(digest)
                found.append(file)
        return found

    def rows(self, files: Sequence[Path]) -> Iterator[list[Row]]:
        """Judge the files, several at once, and yield what was found for each, in order."""
        with ThreadPoolExecutor(self.at_once) as pool:
            yield from pool.map(partial(_of_file, self), files)


def orders(form: str | None, run: Run) -> Iterator[Order]:
    """Yield what a file is sent by."""
    if form is None:  # one refusal tells all
        yield Order("flip")
        return
    turns = [turn for turn in TURNS if not run.turns or turn in run.turns]
    formats = [name for name in _TURN_TO if not run.formats or name in run.formats]
    for turn in turns:
        yield Order(turn)
    yield Order(turns[0], more="strip=true")
    if form == "jpeg":
        yield Order(turns[-1], more="path=pixels")
    for name in formats:
        if name != form:
            yield Order(_TURN_TO[name], name)


def _of_file(run: Run, file: Path) -> list[Row]:
    name = str(file.relative_to(run.root))
    with TemporaryDirectory() as directory, httpx.Client(base_url=run.url, timeout=_ANSWER_S) as client:
        copy = Path(directory, "source")
        copy.write_bytes(file.read_bytes())
        return list(_File(run, name, copy, client).rows())


class _File:
    """One file and all its orders."""

    def __init__(self, run: Run, name: str, file: Path, client: httpx.Client) -> None:
        self._run = run
        self._name = name
        self._file = file
        self._client = client
        self._ends_s = time.monotonic() + run.file_s
        self._opened_by: tuple[str, ...] | None = None

    def rows(self) -> Iterator[Row]:
        bare = Source(self._file, {})
        wanted = list(orders(bare.form, self._run))
        sent = [(order, self._post(order.target, bare.data)) for order in wanted]
        answers = [
            (order, sent_one, self._written(number, sent_one))
            for number, (order, sent_one) in enumerate(sent)
        ]
        files = [file for _, _, file in answers if file is not None]
        source_tags, *tags = metadata.read([self._file, *files])
        tags_of = dict(zip(files, tags, strict=True))
        source = Source(self._file, source_tags)
        for order, answer, file in answers:
            yield self._row(source, order, answer, file, tags_of.get(file, {}) if file else {})
        if (row := self._twice(source, answers)) is not None:
            yield row

    def _post(self, target: str, body: bytes) -> httpx.Response | str:
        """Send it, again if the service is busy; return an answer, or why there is none."""
        for _ in range(_RETRIES):
            try:
                answer = self._client.post(target, content=body)
            except httpx.HTTPError as error:
                return f"no answer: {error!r}"
            if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                return answer
            time.sleep(min(10.0, float(answer.headers.get("Retry-After", 1))))
        return answer

    def _written(self, number: int, answer: httpx.Response | str) -> Path | None:
        if isinstance(answer, str) or answer.status_code != HTTPStatus.OK:
            return None
        file = self._file.with_name(f"answer-{number}")
        file.write_bytes(answer.content)
        return file

    def _row(
        self,
        source: Source,
        order: Order,
        answer: httpx.Response | str,
        file: Path | None,
        tags: metadata.Tags,
    ) -> Row:
        row = partial(Row, self._name, order.target)
        if isinstance(answer, str):
            return row(Verdict.FAILED, detail=answer, kept=self._keep(order, None))
        status = answer.status_code
        if file is None:
            problem, detail = _problem(answer)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                kept = self._keep(order, None)
                return row(Verdict.FAILED, status=status, problem=problem, detail=detail, kept=kept)
            return row(
                Verdict.REFUSED, status=status, problem=problem, detail=detail, opened_by=self._others()
            )
        path = answer.headers.get("X-Image-Path", "")
        row = partial(row, status=status, path=path)
        form = FORM_OF.get(answer.headers["Content-Type"], "")
        if time.monotonic() > self._ends_s:
            return row(Verdict.UNJUDGED, detail="out of time")
        try:
            judgement = judge(source, Answer(order, file, form, path, tags))
        except (Failed, Missing, Unreadable) as error:
            return row(Verdict.UNJUDGED, detail=f"the judge failed: {error}")
        verdict = _verdict(judgement)
        is_odd = verdict in (Verdict.WRONG, Verdict.DISPUTED)
        return row(
            verdict,
            differs=judgement.faults or judgement.disputed,
            detail=judgement.unjudged,
            kept=self._keep(order, file) if is_odd else "",
        )

    def _twice(
        self, source: Source, answers: Sequence[tuple[Order, httpx.Response | str, Path | None]]
    ) -> Row | None:
        """Flip what was flipped."""
        if source.form not in _LOSSLESS:
            return None
        for order, answer, file in answers:
            if order == Order("flip") and file is not None and isinstance(answer, httpx.Response):
                path = answer.headers.get("X-Image-Path", "")
                is_exact = (
                    path == "lossless" and source.orientation == 1
                    if source.form == "jpeg"
                    else not (source.is_rounded or is_lossy(file, source.form, {}))
                )
                return self._flipped_back(source, file, path) if is_exact else None
        return None

    def _flipped_back(self, source: Source, file: Path, path: str) -> Row | None:
        row = partial(Row, self._name, "/flip, twice", path=path)
        again = self._post("/flip", file.read_bytes())
        if isinstance(again, str) or again.status_code != HTTPStatus.OK:
            detail = again if isinstance(again, str) else _problem(again)[1]
            return row(Verdict.WRONG, differs=(f"twice flipped: our own answer is refused: {detail}",))
        twice = self._file.with_name("twice")
        twice.write_bytes(again.content)
        try:
            assert source.form is not None
            fault = twice_fault(source, twice, source.form)
        except (Failed, Missing, Unreadable) as error:
            return row(Verdict.UNJUDGED, status=again.status_code, detail=str(error))
        if fault is None:
            return row(Verdict.RIGHT, status=again.status_code)
        is_disputed = source.complaints(source.readers[0]) or source.complaint
        verdict = Verdict.DISPUTED if is_disputed else Verdict.WRONG
        kept = self._keep(Order("flip", more="twice"), twice)
        return row(verdict, status=again.status_code, differs=(fault,), kept=kept)

    def _others(self) -> tuple[str, ...]:
        if self._opened_by is None:
            self._opened_by = tuple(opened_by(self._file))
        return self._opened_by

    def _keep(self, order: Order, file: Path | None) -> str:
        """Copy input and output to where they can be looked at, and return the directory."""
        data = self._file.read_bytes()
        kept = self._run.into / "kept" / hashlib.sha256(data).hexdigest()[:12]
        kept.mkdir(parents=True, exist_ok=True)
        (kept / ("input" + Path(self._name).suffix)).write_bytes(data)
        if file is not None:
            name = order.target.strip("/").replace("?", "-").replace("&", "-").replace("=", "-")
            (kept / f"{name}.{order.format or 'out'}").write_bytes(file.read_bytes())
        return str(kept)


def _verdict(judgement: Judgement) -> Verdict:
    if judgement.unjudged:
        return Verdict.UNJUDGED
    if judgement.faults:
        return Verdict.WRONG
    return Verdict.DISPUTED if judgement.disputed else Verdict.RIGHT


def _problem(answer: httpx.Response) -> tuple[str, str]:
    """Return the last part of a problem's type, and its detail."""
    try:
        problem = answer.json()
        return str(problem["type"]).rpartition(":")[2], str(problem["detail"])
    except (ValueError, KeyError):
        return "", answer.text[:200]
