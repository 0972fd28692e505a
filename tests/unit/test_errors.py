"""The tree of failures is complete: drawn, titled and translated to HTTP."""

import re
from collections.abc import Iterator

import pytest

from server import errors
from server.errors import ServiceError
from server.web.problems import STATUS_OF, Problem


def tree(root: type[ServiceError], depth: int = 0) -> Iterator[tuple[int, type[ServiceError]]]:
    yield depth, root
    for cls in root.__subclasses__():
        yield from tree(cls, depth + 1)


def leaves(root: type[ServiceError]) -> set[type[ServiceError]]:
    return {cls for _, cls in tree(root) if not cls.__subclasses__()}


def drawing() -> list[tuple[int, str]]:
    """Depth and name of each class in the module's docstring."""
    assert errors.__doc__
    lines = re.findall(r"^    ([│├└─ ]*)([A-Z]\w+)", errors.__doc__, flags=re.MULTILINE)
    return [(len(branches) // 4, name) for branches, name in lines]


def test_every_failure_has_a_status_and_every_status_a_failure() -> None:
    assert leaves(ServiceError) == STATUS_OF.keys()


def test_every_failure_has_a_title_of_its_own() -> None:
    titles = {cls: cls.title for cls in leaves(ServiceError)}
    assert all("title" in vars(cls) for cls in titles)
    assert len({ServiceError.title, *titles.values()}) == len(titles) + 1


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    assert drawing() == [(depth, cls.__name__) for depth, cls in tree(ServiceError)]


@pytest.mark.parametrize("cls", sorted(STATUS_OF, key=str))
def test_a_failure_says_its_detail_to_a_person_and_to_a_log(cls: type[ServiceError]) -> None:
    error = cls("Send a smaller one.")
    assert (error.detail, str(error)) == ("Send a smaller one.", "Send a smaller one.")


@pytest.mark.parametrize("cls", sorted(STATUS_OF, key=str))
def test_a_failure_becomes_a_problem_of_its_status_type_and_title(cls: type[ServiceError]) -> None:
    problem = Problem.of_error(cls("Send a smaller one."))
    assert (problem.status, problem.title, problem.detail) == (
        STATUS_OF[cls],
        cls.title,
        "Send a smaller one.",
    )
    assert problem.slug.replace("-", "") == cls.__name__.lower()
