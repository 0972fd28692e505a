"""The limits of an engine hold from its start."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from support.live_server import DEADLINE_S

from benchmarks.harness import processes
from server.cluster.sandbox import prefer_for_oom_kill

ROOT = Path(__file__).parents[3]

MEMORY_BYTES = 1 << 30


def confined(code: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a process that has entered the sandbox."""
    entry = f"from server.cluster import sandbox; sandbox.enter(nice=3, memory_bytes={MEMORY_BYTES})"
    return subprocess.run(
        [sys.executable, "-c", f"import os, resource, signal\n{before}\n{entry}\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(("was", "becomes"), [("0\n", "500"), ("-900\n", "500"), ("1000\n", "1000\n")])
def test_the_kernel_kills_an_engine_before_a_worker_when_memory_runs_out(
    tmp_path: Path, was: str, becomes: str
) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(was)
    prefer_for_oom_kill(score)
    assert score.read_text() == becomes


def test_an_engine_starts_where_it_may_not_ask_for_that(tmp_path: Path) -> None:
    prefer_for_oom_kill(tmp_path)  # any error of the operating system


def test_an_engine_is_behind_workers_and_has_a_limit_of_memory() -> None:
    result = confined("print(os.nice(0), resource.getrlimit(resource.RLIMIT_AS))")
    assert result.stdout == f"{os.nice(0) + 3} {(MEMORY_BYTES, MEMORY_BYTES)}\n"
    assert confined("bytes(2 << 30)").stderr.endswith("MemoryError\n")


def test_an_engine_that_listens_to_nothing_ends_with_its_worker() -> None:
    code = f"""
        import os
        from server.cluster import sandbox
        if os.fork():
            os.wait()
        sandbox.enter(nice=3, memory_bytes={MEMORY_BYTES})
        print(os.getpid(), flush=True)
        while True:
            pass
    """
    with subprocess.Popen([sys.executable, "-c", dedent(code)], cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        engine = int(worker.stdout.readline())
        worker.kill()
        processes.wait_until_gone(engine, DEADLINE_S)


def test_a_background_engine_gets_only_the_cpu_time_that_is_left() -> None:
    code = "sandbox.enter_background()\nprint(os.sched_getscheduler(0) == os.SCHED_IDLE)"
    assert confined(code).stdout == "True\n"


def test_a_background_engine_is_last_where_the_c_library_cannot_do_more() -> None:
    code = """
        def absent(*_):
            raise OSError(errno.ENOSYS, "Function not implemented")
        os.sched_setscheduler = absent
        sandbox.enter_background()
        print(os.getpriority(os.PRIO_PROCESS, 0))
    """
    assert confined(dedent(code), before="import errno").stdout == "19\n"


def test_a_result_that_is_too_large_is_an_error_and_no_signal(tmp_path: Path) -> None:
    code = """
        sandbox.limit_files(1000)
        with open("NAME", "wb", buffering=0) as file:
            print(file.write(bytes(2000)))
            try:
                file.write(b"x")
            except OSError as error:
                print(errno.errorcode[error.errno])
    """
    result = confined(dedent(code).replace("NAME", str(tmp_path / "result")), before="import errno")
    assert result.stdout == "1000\nEFBIG\n"


def test_a_stricter_limit_of_memory_stays() -> None:
    hard = MEMORY_BYTES // 2
    code = "print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    assert (
        confined(code, before=f"resource.setrlimit(resource.RLIMIT_AS, ({hard}, {hard}))").stdout
        == f"{hard}\n"
    )


def test_a_signal_to_the_whole_group_stops_no_engine() -> None:
    names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"]
    raised = "\n".join(f"signal.raise_signal(signal.{name})" for name in names)
    assert confined(f"{raised}\nprint('alive')").stdout == "alive\n"


def test_nothing_reaches_the_log_once_output_is_closed() -> None:
    code = """
        sandbox.close_output()
        os.write(1, b"out")
        os.write(2, b"error")
        print("out")
        warnings.warn("error")
    """
    result = confined(dedent(code), before="import warnings")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_machine_whose_system_calls_are_unknown_has_the_rest_of_the_jail() -> None:
    code = """
        print(sandbox.enter_jail("riscv64"))
        try:
            os.open("/dev/null", os.O_RDWR)
        except PermissionError:
            print("landlock")
    """
    assert confined(dedent(code)).stdout == "Jail(missing=('seccomp',), listener=None)\nlandlock\n"


def test_the_kernel_kills_what_takes_too_long() -> None:
    result = confined("sandbox.limit_time(0.05)\nwhile True: pass")
    assert result.returncode == -signal.SIGALRM


def test_the_kernel_kills_what_uses_too_much_cpu_time() -> None:
    result = confined("sandbox.limit_cpu_time(0.05)\nwhile True: pass")
    assert result.returncode == -signal.SIGPROF


def test_what_is_done_in_time_lives_on() -> None:
    for function, timer in (("limit_time", "ITIMER_REAL"), ("limit_cpu_time", "ITIMER_PROF")):
        code = f"sandbox.{function}(9); sandbox.{function}(0)\nprint(signal.getitimer(signal.{timer})[0])"
        assert confined(code).stdout == "0.0\n"


def test_this_process_is_not_confined() -> None:
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != MEMORY_BYTES
