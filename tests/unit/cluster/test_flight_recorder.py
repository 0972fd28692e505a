"""What an engine notes is read by its worker, also after the engine has died."""

import os

import pytest

from server.cluster.flight_recorder import FlightRecorder


def test_a_new_recorder_knows_of_no_task() -> None:
    with FlightRecorder.create() as file:
        recorder = FlightRecorder(file)
    assert (recorder.task, recorder.done) == (0, 0)


def test_what_a_process_noted_before_it_died_is_still_there() -> None:
    with FlightRecorder.create() as file:
        reader = FlightRecorder(file)
        if (pid := os.fork()) == 0:
            writer = FlightRecorder(file)
            writer.begin(7, 70)
            writer.end()
            writer.begin(8, 80)
            os._exit(3)
        os.waitpid(pid, 0)
    assert (reader.task, reader.began_us, reader.done) == (8, 80, 1)


def test_signs_of_life_are_counted() -> None:
    with FlightRecorder.create() as file:
        reader, writer = FlightRecorder(file), FlightRecorder(file)
    assert reader.beats == 0
    writer.beat()
    writer.beat()
    assert (reader.beats, reader.task, reader.done) == (2, 0, 0)


def test_the_stages_of_each_task_are_counted() -> None:
    with FlightRecorder.create() as file:
        reader, writer = FlightRecorder(file), FlightRecorder(file)
    writer.begin(7, 70)
    writer.pass_stages(2)
    assert reader.stages == 2
    writer.end()
    writer.begin(8, 80)
    assert reader.stages == 0


def test_an_engine_cannot_cut_the_recorder_off_under_its_worker() -> None:
    with FlightRecorder.create() as file, pytest.raises(PermissionError):
        file.truncate(0)
