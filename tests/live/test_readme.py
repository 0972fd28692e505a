"""The README is true: its commands are run, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from support.live_server import DEADLINE_S, ROOT, LiveServer, run

from benchmarks.comparison.report import markdown, read, summarise
from benchmarks.comparison.tables import have_ours_failed
from benchmarks.harness.tables import read_tables
from benchmarks.queues.tables import markdown as queues_markdown

README = (ROOT / "README.md").read_text()


def blocks(document: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)


def script(document: Path) -> str:
    """All blocks about jobs: a later command uses what an earlier one has put into a variable."""
    return "".join(block for block in blocks(document) if re.search(r"\$(job|batch|queue)\b|=\$\(", block))


COMMANDS = [
    line
    for block in blocks(ROOT / "README.md")
    if block not in script(ROOT / "README.md")
    for line in block.splitlines()
]
EXAMPLE = ROOT / "benchmarks" / "results" / "example"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    ROOT / "benchmarks" / "peers" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_the_first_screen_has_the_two_commands_and_the_curl_line() -> None:
    first_screen = "\n".join(README.splitlines()[:24])
    assert [command for command in COMMANDS if command in first_screen] == [
        "make serve",
        "curl --data-binary @images/landscape.jpg http://localhost:8000/flip -o flipped.jpg",
        "make test",
    ]


def test_make_clean_removes_what_the_commands_make() -> None:
    made = {name for block in blocks(ROOT / "README.md") for name in re.findall(r"-o (\S+\.\w+)", block)}
    assert made >= {"flipped.jpg", "flipped.zip"}
    recipe = (ROOT / "Makefile").read_text().partition("\nclean:")[2]
    assert made <= set(recipe.split())


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("curl")])
def test_a_curl_line_gives_an_image(server: LiveServer, tmp_path: Path, command: str) -> None:
    (tmp_path / "images").symlink_to(ROOT / "images")
    arguments = shlex.split(command.replace("http://localhost:8000", server.url))
    result = subprocess.run(
        [*arguments, "--silent", "--show-error", "--fail"], cwd=tmp_path, check=False, capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, b"")
    (output,) = (path for path in tmp_path.iterdir() if path.is_file())
    with Image.open(output) as image:
        image.load()


@pytest.fixture(scope="module")
def with_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    environ = {"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    with LiveServer(environ=environ) as server:
        yield server


@pytest.mark.parametrize("name", ["README.md", "docs/jobs.md"])
def test_the_commands_about_jobs_work_one_after_the_other(
    with_jobs: LiveServer, tmp_path: Path, name: str
) -> None:
    (tmp_path / "images").symlink_to(ROOT / "images")
    commands = script(ROOT / name).replace("http://localhost:8000", with_jobs.url)
    commands = commands.replace("curl ", f"curl --silent --show-error --fail --max-time {DEADLINE_S:.0f} ")
    result = subprocess.run(
        ["sh", "-eux"], input=commands, cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    now = httpx.post(with_jobs.url + "/flip", content=(ROOT / "images" / "landscape.jpg").read_bytes())
    assert (tmp_path / "flipped.jpg").read_bytes() == now.content
    with zipfile.ZipFile(tmp_path / "flipped.zip") as archive:
        assert archive.namelist() == ["000000.jpg", "000001.jpg", "manifest.json"]
        assert archive.read("000000.jpg") == now.content
    assert "event: ended" in result.stdout


@pytest.mark.parametrize(
    "target",
    sorted({target for path in DOCUMENTS for target in re.findall(r"make ([a-z]+)[`\n]", path.read_text())}),
)
def test_a_make_target_that_is_named_exists(target: str) -> None:
    assert run(["make", "--dry-run", target]).returncode == 0


@pytest.mark.parametrize("command", [line for line in COMMANDS if "gunicorn" in line])
def test_a_gunicorn_line_is_a_valid_configuration(command: str) -> None:
    result = run(
        ["sh", "-c", command.replace(".venv/bin/gunicorn", f"{sys.executable} -m gunicorn --check-config")]
    )
    assert result.returncode == 0, result.stderr


def test_the_example_of_a_benchmark_is_what_the_harness_makes_of_its_raw_data() -> None:
    summary = summarise(read(EXAMPLE))
    assert markdown(summary) == (EXAMPLE / "summary.md").read_text()
    assert summary.totals["ok"] > 0
    assert not have_ours_failed(summary)


def test_the_tables_of_the_benchmark_in_the_readme_are_those_of_the_example() -> None:
    _, _, section = README.partition("\n## What clustering gives\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith(("|", ">"))]
    assert len(lines) == 7  # head, rule, the article, its design, ours, ours as shipped; the verdict
    assert set(lines) <= set((EXAMPLE / "summary.md").read_text().splitlines())


def test_the_table_of_queues_in_the_readme_is_that_of_the_example() -> None:
    _, _, section = README.partition("\n## How its queue compares\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    table = (EXAMPLE / "queues.md").read_text().partition("\n## Job queues\n")[2].partition("\n## ")[0]
    assert lines == [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) > 2  # head and rule


def test_the_example_of_queues_is_what_its_figures_say() -> None:
    found = read_tables((EXAMPLE / "queues.json").read_text())
    written = (EXAMPLE / "queues.md").read_text()
    assert written == queues_markdown(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_link_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target
