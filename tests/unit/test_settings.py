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


def test_the_largest_image_may_become_a_bmp_by_default() -> None:
    assert Settings().max_result_bytes >= 4 * Settings().max_pixels + 1000  # its headers


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
        ("FLIP_MAX_RESULT_BYTES", "0"),
        ("FLIP_MAX_RESULT_BYTES", "9223372036854775807"),
        ("FLIP_ENGINE_NICE", "-1"),
        ("FLIP_ENGINE_NICE", "20"),
        ("FLIP_UPLOAD_TIMEOUT_S", "nan"),
        ("FLIP_QUARANTINE_S", "1e30"),
        ("FLIP_SAMPLE_IMAGE", "/no/such/image.jpg"),
        ("FLIP_SAMPLE_IMAGE", "/"),
        ("FLIP_LOG_FORMAT", "xml"),
        ("FLIP_JOBS", "on"),
        ("FLIP_DATA_DIR", ""),
        ("FLIP_QUEUE_URL", ""),
        ("FLIP_BLOB_URL", ""),
        ("FLIP_BLOB_URL", "s3://"),
        ("FLIP_BLOB_URL", "s3://bucket/"),
        ("FLIP_BLOB_URL", "s3://xy"),
        ("FLIP_BLOB_URL", "s3://" + "x" * 64),
        ("FLIP_BLOB_URL", "https://bucket"),
        ("FLIP_VALKEY", ""),
        ("FLIP_RESULT_TTL_S", "0"),
        ("FLIP_MAX_QUEUED_JOBS", "0"),
        ("FLIP_MAX_QUEUED_BYTES", "0"),
        ("FLIP_MAX_BATCH_ITEMS", "0"),
        ("FLIP_MAX_BATCH_BYTES", "0"),
        ("FLIP_MAX_BATCH_RATIO", "0"),
        ("FLIP_LEASE_S", "2.9"),
        ("FLIP_JOB_ATTEMPTS", "0"),
        ("FLIP_JOBS_AT_ONCE", "-1"),
        ("FLIP_STORE_GRACE_S", "0"),
        ("FLIP_HUNG_AFTER_S", "1"),
        ("FLIP_HUNG_AFTER_S", "1.9"),
        ("FLIP_HUNG_AFTER_S", "-1"),
    ],
)
def test_a_wrong_value_is_refused_with_one_line_that_names_it(name: str, value: str) -> None:
    text = refusal({name: value})
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    assert repr(value).strip("'") in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLIP_MAX_BODY_BYTES", "1"),
        ("FLIP_ENGINE_NICE", "0"),
        ("FLIP_ENGINE_NICE", "19"),
        ("FLIP_HUNG_AFTER_S", "0"),
        ("FLIP_HUNG_AFTER_S", "2"),
    ],
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


@pytest.mark.parametrize("given", [{}, {"FLIP_MAX_BODY_BYTES": "60000000"}])
def test_where_there_is_little_memory_the_refusal_says_what_to_lower(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.settings.memory_bytes", lambda: 100_000_000)
    text = refusal(given)
    assert text.startswith("FLIP_MAX_BODY_BYTES: ")
    assert "100000000" in text
    assert "50000000" in text
    assert "FLIP_MAX_BYTES_IN_FLIGHT" not in text
    assert Settings.from_environ({"FLIP_MAX_BODY_BYTES": "50000000"}).max_bytes_in_flight is None


def test_a_result_fits_next_to_its_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.settings.memory_bytes", lambda: 2**31)
    assert Settings().result_bytes == 512 * 2**20
    assert Settings(max_result_bytes=1000).result_bytes == 1000
    assert Settings(max_bytes_in_flight=2**27).result_bytes == 2**26


def test_the_time_of_downloads_can_be_unlimited_and_not_negative() -> None:
    assert Settings(download_timeout_s=0).download_timeout_s == 0
    assert refusal({"FLIP_DOWNLOAD_TIMEOUT_S": "-1"}).startswith("FLIP_DOWNLOAD_TIMEOUT_S: ")


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


# --- jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/state/flipcluster"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/flipcluster"),
        ({"XDG_STATE_HOME": "/state", "STATE_DIRECTORY": "/var/lib/flip"}, "/var/lib/flip"),
        ({"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}, "/var/lib/one"),
        ({"STATE_DIRECTORY": "/var/lib/flip", "FLIP_DATA_DIR": "/data"}, "/data"),
        ({"HOME": "", "XDG_STATE_HOME": "", "FLIP_DATA_DIR": "data"}, str(Path.cwd() / "data")),
    ],
)
def test_data_is_kept_where_the_system_keeps_it(environ: dict[str, str], directory: str) -> None:
    settings = Settings.from_environ(environ)
    assert settings.data_dir == Path(directory)
    assert settings.store_url == f"unix://{directory}/store/valkey.sock"


def test_settings_make_no_directory(tmp_path: Path) -> None:
    Settings.from_environ({"FLIP_DATA_DIR": str(tmp_path / "data")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:1/0",
        "rediss://user:secret@host",
        "unix:///run/valkey.sock",
        "redis+sentinel://one:26379,two/images",
        "rediss+sentinel://:secret@one,two/images/0?ssl_ca_certs=/ca.pem",
        "redis+cluster://one:7000,two:7000",
    ],
)
def test_a_store_of_ones_own_is_used_where_jobs_are_remote(url: str) -> None:
    assert Settings.from_environ({"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": url}).store_url == url
    for other in ({}, {"FLIP_JOBS": "embedded"}, {"FLIP_JOBS": "off"}):
        assert refusal({**other, "FLIP_QUEUE_URL": url}) == "FLIP_QUEUE_URL: needs FLIP_JOBS=remote"


@pytest.mark.parametrize(
    "url", ["redis+sentinel://one,two", "redis+other://one", "unix+cluster://one", "redis://"]
)
def test_an_address_of_no_store_is_refused(url: str) -> None:
    text = refusal({"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": url})
    assert text.startswith("FLIP_QUEUE_URL: Input should be a redis://, rediss:// or unix:// URL")


@pytest.mark.parametrize("url", ["s3://abc", f"s3://{'x' * 63}/jobs/of-ours"])
def test_files_of_jobs_may_be_in_a_bucket(url: str) -> None:
    assert Settings.from_environ({"FLIP_BLOB_URL": url}).blob_url == url


def test_the_refusal_of_a_bucket_says_what_a_name_may_be() -> None:
    assert "3 to 63 " in refusal({"FLIP_BLOB_URL": "s3://x"})


def test_there_is_no_store_without_jobs() -> None:
    assert Settings.from_environ({"FLIP_JOBS": "off"}).store_url is None


def test_remote_jobs_need_the_address_of_their_store() -> None:
    assert refusal({"FLIP_JOBS": "remote"}) == "FLIP_QUEUE_URL: needed with FLIP_JOBS=remote"


def test_a_path_of_the_socket_that_is_too_long_is_refused() -> None:
    longest = "/" + "x" * (107 - len("//store/valkey.sock"))
    assert len(str(Settings.from_environ({"FLIP_DATA_DIR": longest}).store_socket)) == 107
    text = refusal({"FLIP_DATA_DIR": f"{longest}xx"})
    assert text.startswith("FLIP_DATA_DIR: ")
    assert "by 2 bytes" in text
    assert "\n" not in text
    assert Settings.from_environ({"FLIP_DATA_DIR": f"{longest}xx", "FLIP_JOBS": "off"}).store_url is None


def test_no_password_is_repeated() -> None:
    environ = {"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": "redis://:hush@host", "FLIP_ADMIN_TOKEN": "hush"}
    settings = Settings.from_environ(environ)
    assert settings.admin_token
    assert settings.admin_token.get_secret_value() == "hush"
    assert "hush" not in f"{settings!r} {settings}"
    text = refusal({**environ, "FLIP_QUEUE_URL": "http://:hush@host", "FLIP_LEASE_S": "soon"})
    assert sorted(line.partition(":")[0] for line in text.splitlines()) == ["FLIP_LEASE_S", "FLIP_QUEUE_URL"]
    assert "hush" not in text


def test_an_empty_token_is_refused_because_it_may_be_a_mistake() -> None:
    assert refusal({"FLIP_ADMIN_TOKEN": ""}).startswith("FLIP_ADMIN_TOKEN: Input should not be empty")


def test_queues_are_named_between_commas() -> None:
    assert Settings().queues == ("default",)
    assert Settings.from_environ({"FLIP_QUEUES": "fast, slow-2"}).queues == ("fast", "slow-2")


@pytest.mark.parametrize(
    "names", ["", "fast,", "Fast", "a b", "a/b", "é", "callbacks", "fast,fast", "x" * 65]
)
def test_names_of_queues_that_are_none_are_refused(names: str) -> None:
    text = refusal({"FLIP_QUEUES": names})
    assert text.startswith("FLIP_QUEUES: Input should ")
    assert "\n" not in text


@pytest.mark.parametrize("kind", ["missing", "a directory", "not executable"])
def test_a_program_that_cannot_be_run_is_refused(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "valkey"
    if kind == "a directory":
        program.mkdir()
    elif kind == "not executable":
        program.touch(0o600)
    assert refusal({"FLIP_VALKEY": str(program)}).startswith("FLIP_VALKEY: ")
    if kind == "not executable":
        program.chmod(0o700)
        assert Settings.from_environ({"FLIP_VALKEY": str(program)}).valkey == program


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"HOSTS": "a.example"}, "FLIP_CALLBACK_SECRET: needed with FLIP_CALLBACK_HOSTS"),
        ({"SECRET": "x" * 23}, "FLIP_CALLBACK_SECRET: Input should have at least 24 characters"),
        ({"SECRET": "whsec_" + "x" * 23}, "FLIP_CALLBACK_SECRET: Input should be base64 after `whsec_`"),
        ({"HOSTS": ""}, "FLIP_CALLBACK_HOSTS: Input should not be empty; leave the variable out instead"),
        ({"HOSTS": "https://a.example"}, "FLIP_CALLBACK_HOSTS: Input should be names of hosts"),
        ({"HOSTS": "a.example,"}, "FLIP_CALLBACK_HOSTS: Input should be names of hosts"),
    ],
)
def test_callbacks_need_hosts_and_a_secret(given: dict[str, str], expected: str) -> None:
    text = refusal({f"FLIP_CALLBACK_{name}": value for name, value in given.items()})
    assert text.startswith(expected)
    assert "xxx" not in text


def test_the_hosts_of_callbacks_are_a_list() -> None:
    settings = Settings.from_environ(
        {"FLIP_CALLBACK_HOSTS": "A.example, ::1", "FLIP_CALLBACK_SECRET": "whsec_" + "x" * 24}
    )
    assert settings.callback_hosts == ("a.example", "::1")
    assert "xxx" not in repr(settings)
