"""An owner is dead when its very process has ended, and when that can be known."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from server.jobs import owners


def own_machine() -> str:
    return owners.own_name().partition(":")[0]


def name_of(pid: int) -> str:
    return f"{own_machine()}:{pid}:{owners._start(pid)}"


def test_a_process_has_one_name_and_lives() -> None:
    name = owners.own_name()
    assert name == owners.own_name() == name_of(os.getpid())
    assert re.fullmatch(rf"[0-9a-f-]{{36}}/\d+:{os.getpid()}:\d+", name)
    assert not owners.is_dead(name)


def test_a_process_that_has_ended_is_dead_before_and_after_it_is_waited_for() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        name = name_of(child.pid)
        assert not owners.is_dead(name)
        child.stdin.close()  # type: ignore[union-attr]
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        assert owners.is_dead(name)
    assert owners.is_dead(name)


def test_a_name_with_spaces_and_brackets_hides_no_state(tmp_path: os.PathLike[str]) -> None:
    program = os.path.join(tmp_path, "a) Z (b")  # noqa: PTH118 a program named by an attacker
    os.symlink("/bin/cat", program)  # noqa: PTH211
    with subprocess.Popen([program], stdin=subprocess.PIPE) as child:
        assert not owners.is_dead(name_of(child.pid))


def test_a_process_that_proc_hides_is_dead_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sys", "self"):  # all that a /proc with hidepid shows of other users
        (tmp_path / name).symlink_to(f"/proc/{name}")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        name, of_another = name_of(child.pid), f"{own_machine()}:1:1"
        monkeypatch.setattr(owners, "_PROC", tmp_path)
        assert not owners.is_dead(name)
        assert not owners.is_dead(of_another)
    assert owners.is_dead(name)


def test_another_process_with_the_same_id_is_another_owner() -> None:
    machine, pid, start = owners.own_name().split(":")
    assert owners.is_dead(f"{machine}:{pid}:{int(start) - 1}")


def test_nothing_is_known_of_processes_elsewhere() -> None:
    boot, namespace = own_machine().split("/")
    for machine in (f"{'0' * 36}/{namespace}", f"{boot}/1"):
        assert not owners.is_dead(f"{machine}:{1 << 30}:1")
