"""What the harness says of processes."""

import os
import subprocess
import sys

from benchmarks.harness import processes


def test_a_process_that_has_ended_is_a_zombie_until_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.zombies_of_session(child.pid) == [child.pid]
        assert processes.of_session(child.pid) == []
        assert not processes.is_alive(child.pid)
    assert processes.zombies_of_session(child.pid) == []
