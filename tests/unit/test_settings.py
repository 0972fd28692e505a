"""Settings are read from the given mapping, validated before the start, and immutable."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import InvalidSettings, Settings


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environ(environ)
    return str(caught.value)


def test_no_variable_at_all_gives_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()


def test_a_variable_overrides_its_default_and_no_other() -> None:
    settings = Settings.from_environ({"FLIP_MAX_PIXELS": "4"})
    assert settings == Settings().model_copy(update={"max_pixels": 4})


def test_every_kind_of_value_can_be_given(tmp_path: Path) -> None:
    image = tmp_path / "mine.png"
    image.touch()
    settings = Settings.from_environ(
        {
            "FLIP_MAX_BODY_BYTES": "1000",
            "FLIP_UPLOAD_TIMEOUT_S": "0.5",
            "FLIP_SAMPLE_IMAGE": str(image),
            "FLIP_LOG_FORMAT": "json",
        }
    )
    assert settings.max_body_bytes == 1000
    assert settings.upload_timeout_s == 0.5
    assert settings.sample_image == image
    assert settings.log_format == "json"


def test_the_bundled_sample_image_is_there() -> None:
    assert Settings().sample_image.read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", ["FLIP_MAX_PIXEL", "FLIP_", "FLIP_max_pixels_", "FLIP_PORT"])
def test_an_unknown_name_is_refused_by_name(name: str) -> None:
    assert refusal({name: "4"}).startswith(name.upper() + ": ")


@pytest.mark.parametrize(
    "name", ["PORT", "WEB_CONCURRENCY", "FLIPPER", "flip_max_pixels", "MY_FLIP_MAX_PIXELS"]
)
def test_variables_without_the_prefix_are_ignored(name: str) -> None:
    assert Settings.from_environ({name: "nonsense"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLIP_MAX_BODY_BYTES", "64 MiB"),
        ("FLIP_MAX_BODY_BYTES", "0"),
        ("FLIP_MAX_BODY_BYTES", "1.5"),
        ("FLIP_UPLOAD_TIMEOUT_S", "soon"),
        ("FLIP_UPLOAD_TIMEOUT_S", "0"),
        ("FLIP_MAX_WAIT_S", "inf"),
        ("FLIP_ENGINE_TIMEOUT_S", "1e300"),
        ("FLIP_ENGINE_MEMORY_BYTES", "9223372036854775808"),
        ("FLIP_QUARANTINE_DIR", ""),
        ("FLIP_MAX_PIXELS", ""),
        ("FLIP_MAX_PIXELS", "-1"),
        ("FLIP_MAX_FRAMES", "0"),
        ("FLIP_MAX_TOTAL_PIXELS", "0"),
        ("FLIP_ENGINE_NICE", "-1"),
        ("FLIP_ENGINE_NICE", "20"),
        ("FLIP_UPLOAD_TIMEOUT_S", "nan"),
        ("FLIP_QUARANTINE_S", "1e30"),
        ("FLIP_SAMPLE_IMAGE", "/no/such/image.jpg"),
        ("FLIP_SAMPLE_IMAGE", "/"),
        ("FLIP_LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_refused_with_one_line_that_names_it(name: str, value: str) -> None:
    text = refusal({name: value})
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    assert repr(value).strip("'") in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("FLIP_MAX_BODY_BYTES", "1"), ("FLIP_ENGINE_NICE", "0"), ("FLIP_ENGINE_NICE", "19")],
)
def test_a_value_at_its_bound_is_accepted(name: str, value: str) -> None:
    settings = Settings.from_environ({name: value})
    assert getattr(settings, name.removeprefix("FLIP_").lower()) == int(value)


def test_a_directory_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"FLIP_QUARANTINE_DIR": str(tmp_path)}
    assert Settings.from_environ(given).quarantine_dir == tmp_path
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert refusal(given).startswith("FLIP_QUARANTINE_DIR: Directory cannot be written to")


def test_the_bytes_in_flight_must_allow_one_upload() -> None:
    text = refusal({"FLIP_MAX_BYTES_IN_FLIGHT": "1000", "FLIP_MAX_BODY_BYTES": "1001"})
    assert text.startswith("FLIP_MAX_BYTES_IN_FLIGHT: ")
    assert "FLIP_MAX_BODY_BYTES" in text


def test_one_refusal_names_every_wrong_setting() -> None:
    lines = refusal({"FLIP_MAX_FRAMES": "many", "FLIP_MAX_PIXEL": "4"}).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["FLIP_MAX_FRAMES", "FLIP_MAX_PIXEL"]


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_pixels = 4  # type: ignore[misc]
    assert settings == Settings()


def test_the_environment_of_the_process_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIP_MAX_PIXELS", "4")
    monkeypatch.setenv("MAX_PIXELS", "4")
    assert Settings.from_environ({}).max_pixels == Settings().max_pixels == 100_000_000
