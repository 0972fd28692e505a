"""Tests and benchmarks do not import each other: both import the harness."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

#: The tests of the benchmarks, and the test that README shows what the comparison writes.
OF_BENCHMARKS = {
    TESTS / "live" / "test_attacks.py",
    TESTS / "live" / "test_benchmark.py",
    TESTS / "live" / "test_queues.py",
    TESTS / "live" / "test_readme.py",
    TESTS / "live" / "test_survival.py",
    TESTS / "live" / "test_survival_of_jobs.py",
    TESTS / "unit" / "test_peers.py",
    *(TESTS / "unit" / "benchmarks").rglob("*.py"),
}


def imported(file: Path) -> Iterator[str]:
    """Name the modules that a file imports, with the names that it imports from them."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_tests_import_nothing_of_the_benchmarks_but_their_harness() -> None:
    found = {
        (str(file.relative_to(ROOT)), module)
        for file in set(TESTS.rglob("*.py")) - OF_BENCHMARKS
        for module in imported(file)
        if module.startswith("benchmarks.") and not module.startswith("benchmarks.harness.")
    }
    assert found == set()


def test_benchmarks_import_nothing_of_the_tests() -> None:
    packages = {path.name for path in TESTS.iterdir() if path.is_dir()} | {"tests"}
    assert "support" in packages
    found = {
        (str(file.relative_to(ROOT)), module)
        for file in (ROOT / "benchmarks").rglob("*.py")
        if "node_modules" not in file.parts
        for module in imported(file)
        if module.partition(".")[0] in packages
    }
    assert found == set()
