"""docs/problems.md, docs/settings.md and a table of docs/runbook.md describe what the code does."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from server.cluster.cpus import usable_cores
from server.operations.images import OPERATIONS
from server.settings import Settings
from server.web.openapi import document
from server.web.problems import STATUS_OF, Problem

ROOT = Path(__file__).parents[2]
PROBLEMS = (ROOT / "docs" / "problems.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


class Section(NamedTuple):
    """The section of docs/problems.md about one problem."""

    type: str
    status: int
    title: str
    prose: str


def sections() -> dict[str, Section]:
    found = re.findall(
        r"^## (\S+)\n\n- Type: `(\S+)`\n- Status: (\d+)\n- Title: ([^\n]+)\n\n(.+?)(?=\n#|\Z)",
        PROBLEMS,
        flags=re.MULTILINE | re.DOTALL,
    )
    return {slug: Section(type_, int(status), title, prose) for slug, type_, status, title, prose in found}


def rows(heading: str, text: str = SETTINGS) -> list[list[str]]:
    """Return the cells of all rows of the tables whose header begins with a word."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert tables
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for table in tables
        for line in table.splitlines()
    ]


def code(cell: str) -> str:
    """Return the text between backticks, in a cell that holds nothing else."""
    assert re.fullmatch(r"`[^`]+`", cell), cell
    return cell.strip("`")


def problems_of_the_service() -> dict[str, Problem]:
    problems = [Problem.of_error(cls("What to do next.")) for cls in STATUS_OF]
    return {problem.slug: problem for problem in problems}


def gunicorn(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Run gunicorn as a user does, in an environment without any of its variables."""
    clean = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return subprocess.check_output(
        [sys.executable, "-m", "gunicorn", *arguments], cwd=ROOT, env={**clean, **(environ or {})}, text=True
    )


def configuration(*arguments: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    printed = gunicorn("--print-config", *arguments, environ=environ)
    return dict(re.findall(r"^(\w+) += (.*)$", printed, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def as_configured() -> dict[str, str]:
    return configuration()


# --- problems.md ------------------------------------------------------------------------------------------


def test_every_heading_of_a_problem_has_a_section_of_the_right_form() -> None:
    assert list(sections()) == re.findall(r"^## (.+)$", PROBLEMS, flags=re.MULTILINE)


@pytest.mark.parametrize("slug", problems_of_the_service())
def test_every_failure_of_the_service_has_its_section(slug: str) -> None:
    problem, section = problems_of_the_service()[slug], sections()[slug]
    assert (section.status, section.title) == (problem.status, problem.title)


def test_every_section_carries_the_type_that_is_sent() -> None:
    for slug, section in sections().items():
        problem = Problem(HTTPStatus(section.status), slug, section.title, "What to do next.")
        assert json.loads(problem.render("id"))["type"] == section.type


@pytest.mark.parametrize("slug", sorted(sections().keys() - problems_of_the_service().keys()))
def test_a_section_about_a_problem_of_the_framework_or_the_server_is_what_they_send(slug: str) -> None:
    section = sections()[slug]
    problem = Problem.of_status(HTTPStatus(section.status), "What to do next.")
    assert (problem.slug, problem.title) == (slug, section.title)


def test_the_problems_of_the_framework_and_the_server_have_sections() -> None:
    assert {
        section.status for slug, section in sections().items() if slug not in problems_of_the_service()
    } == {
        400,
        404,
        405,
        408,
        414,
        416,
        426,
        431,
        500,
        501,
    }


def test_every_section_says_when_and_what_to_do() -> None:
    for slug, section in sections().items():
        assert re.fullmatch(r"\*\*When\.\*\*\n.+?\n\n\*\*What to do\.\*\*\n.+", section.prose, re.DOTALL), (
            slug
        )


def test_every_problem_of_the_openapi_document_has_its_section() -> None:
    api = document(OPERATIONS.values(), Settings().queues)
    examples = [
        example["value"]
        for response in api["components"]["responses"].values()
        for media in response.get("content", {}).values()
        for example in media.get("examples", {}).values()
    ]
    assert len(examples) > 10
    for example in examples:
        section = sections()[example["type"].rpartition(":")[2]]
        assert (example["type"], example["status"], example["title"]) == section[:3]


def test_the_settings_that_problems_name_exist() -> None:
    named = set(re.findall(r"FLIP_\w+", PROBLEMS))
    assert named
    assert {name.removeprefix("FLIP_").lower() for name in named} <= Settings.model_fields.keys()


# --- settings.md ------------------------------------------------------------------------------------------


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    documented = [code(name) for name, *_ in rows("variable") if "FLIP_" in name]
    assert documented == [f"FLIP_{field.upper()}" for field in Settings.model_fields]


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_setting_is_described_as_in_the_code(field: str) -> None:
    (row,) = [row for row in rows("variable") if row[0] == f"`FLIP_{field.upper()}`"]
    assert row[2] == Settings.model_fields[field].description


@pytest.mark.parametrize("field", Settings.model_fields)
def test_the_documentation_of_a_setting_names_its_bounds(field: str) -> None:
    info = Settings.model_fields[field]
    bounds = [getattr(rule, name) for rule in info.metadata for name in ("ge", "le") if hasattr(rule, name)]
    said = {int(number) for number in re.findall(r"\d+", info.description or "")}
    # A percentage has its bounds, and none needs to know how far a clock and the kernel can count.
    assert {bound for bound in bounds if 0 < bound < 1e9 and bound != 100} <= said


@pytest.mark.parametrize("field", Settings.model_fields)
def test_giving_a_setting_its_documented_default_changes_nothing(field: str) -> None:
    name = f"FLIP_{field.upper()}"
    (cell,) = [row[1] for row in rows("variable") if row[0] == f"`{name}`"]
    if getattr(Settings(), field) is None:
        assert cell == "not set"
        return
    default = code(cell)
    if isinstance(getattr(Settings(), field), Path) and not default.startswith("~"):
        default = str(ROOT / default)
    assert Settings.from_environ({name: default}) == Settings()


def test_gunicorn_is_set_as_documented(as_configured: dict[str, Any]) -> None:
    documented = {code(name): value for name, _, value, _ in rows("setting")}
    assert documented.pop("workers") == "one per usable core"
    assert as_configured["workers"] == str(usable_cores())
    assert as_configured["bind"] == repr([code(documented.pop("bind"))])
    assert {name: as_configured[name] for name in documented} == {
        name: code(value) for name, value in documented.items()
    }


def test_every_setting_in_gunicorn_conf_is_documented_or_internal() -> None:
    text = (ROOT / "gunicorn.conf.py").read_text()
    ours = {"wsgi_app", "logger_class", "asgi_disconnect_grace_period", "asgi_lifespan", "asgi_loop"}
    documented = {code(name) for name, *_ in rows("setting")}
    assert set(re.findall(r"^([a-z]\w*) = (?!_hooks\.)", text, flags=re.MULTILINE)) <= documented | ours


def test_gunicorn_has_every_option_that_is_documented() -> None:
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", gunicorn("--help")))
    assert {code(option) for _, option, _, _ in rows("setting")} <= options


def test_the_environment_variables_of_gunicorn_work_as_documented() -> None:
    environ = {"WEB_CONCURRENCY": "3", "PORT": "1234", "GUNICORN_CMD_ARGS": "--timeout 7"}
    assert {code(row[0]) for row in rows("variable") if "FLIP_" not in row[0]} == environ.keys()
    set_ = configuration(environ=environ)
    assert (set_["workers"], set_["bind"], set_["timeout"]) == ("3", "['0.0.0.0:1234']", "7")
    set_ = configuration("-w", "4", "-b", "127.0.0.1:5", "--timeout", "8", environ=environ)
    assert (set_["workers"], set_["bind"], set_["timeout"]) == ("4", "['127.0.0.1:5']", "8")


# --- runbook.md -------------------------------------------------------------------------------------------


def test_every_bad_place_of_the_runbook_is_tried_and_none_else() -> None:
    tried = re.findall(r'mark\.place\("(.+?)"\)', (ROOT / "tests" / "live" / "test_places.py").read_text())
    documented = [place for place, *_ in rows("place", RUNBOOK)]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(tried)


# --- architecture.md --------------------------------------------------------------------------------------


def test_every_module_is_where_the_architecture_says() -> None:
    (tree,) = re.findall(r"## Where the code is\n.*?```\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)
    named, directory = [], ROOT
    for line in tree.splitlines():
        first, indented = line.split()[0], line.startswith(" ")
        if not indented:
            directory = ROOT / first if first.endswith("/") else ROOT
        # Descriptions follow after several spaces.
        names = re.split(r" {2,}", line.strip())[0]
        named += [directory / name for name in names.split() if re.fullmatch(r"[\w/.]+\.(py|lua)", name)]
    assert len(named) > 50
    assert [str(path.relative_to(ROOT)) for path in named if not path.is_file()] == []


def test_no_item_of_a_list_is_empty() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert re.findall(r"^ *(?:-|\d+\.) *$", file.read_text(), flags=re.MULTILINE) == [], file
