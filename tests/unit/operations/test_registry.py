"""Operations are found by name, and what a worker loads of them holds no decoder."""

import os
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from server.errors import OperationRefused
from server.operations.images import OPERATIONS
from server.operations.registry import Operation, by_name
from server.web.problems import STATUS_OF

ROOT = Path(__file__).parents[3]

#: What the worker decides, so what no engine may say.
BY_THE_WORKER = {"PoisonImage", "TooMuchWork"}


def leaves(cls: type[OperationRefused]) -> set[type[OperationRefused]]:
    below = cls.__subclasses__()
    return {leaf for child in below for leaf in leaves(child)} if below else {cls}


def test_an_operation_is_found_by_its_name() -> None:
    assert {name: operation.name for name, operation in OPERATIONS.items()} == {
        name: name for name in ("flip", "flop", "rotate", "transpose", "transverse", "orient")
    }


def test_two_operations_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="flip"):
        by_name(OPERATIONS["flip"], OPERATIONS["flip"])


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_entry_of_the_table_leads_to_a_function(operation: Operation) -> None:
    assert callable(resolve_name(operation.run))
    assert operation.prepare is not None
    assert callable(resolve_name(operation.prepare))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_is_refused_in_ways_that_have_an_answer_and_an_example(operation: Operation) -> None:
    for cls in operation.refusals:
        assert cls in STATUS_OF
        assert cls.example


def test_an_operation_on_images_may_be_refused_in_every_way_but_those_that_the_worker_decides() -> None:
    for operation in OPERATIONS.values():
        named = {cls for cls in leaves(OperationRefused) if cls.__name__ not in BY_THE_WORKER}
        assert set(operation.refusals) == named


def test_an_engine_loads_nothing_that_only_workers_need() -> None:
    modules = {operation.run.partition(":")[0] for operation in OPERATIONS.values()}
    code = (
        f"import sys; import server.cluster.engine; import {', '.join(modules)};"
        "print({'pydantic', 'falcon', 'structlog', 'prometheus_client', 'gunicorn'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output.strip() == "set()"


def test_a_worker_loads_no_decoder() -> None:
    code = "import sys; import server.app, server.worker; print({'PIL', 'server.imaging'} & set(sys.modules))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output == "set()\n"


@pytest.mark.parametrize(
    ("environ", "loaded"),
    [
        ({"FLIP_JOBS": "off"}, set()),
        ({"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": "redis://localhost"}, {"redis", "multipart"}),
        (
            {
                "FLIP_JOBS": "remote",
                "FLIP_QUEUE_URL": "redis://localhost",
                "FLIP_CALLBACK_HOSTS": "localhost",
                "FLIP_CALLBACK_SECRET": "a secret of thirty characters.",
            },
            {"redis", "multipart", "httpx"},
        ),
    ],
)
def test_a_worker_loads_no_client_that_it_does_not_use(environ: dict[str, str], loaded: set[str]) -> None:
    code = (
        "import sys; from server.gateway import arbiter; from server.app import get_app; get_app();"
        "print(sorted({'redis', 'multipart', 'httpx'} & set(sys.modules)))"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, text=True, env={**os.environ, **environ}
    )
    assert output == f"{sorted(loaded)}\n"
