"""Submissions: what is refused before anything is kept."""

import errno
import os

import pytest

from server.errors import ServiceUnavailable
from server.web.submissions import refusing_when_full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_refuses_a_submission_for_a_time(number: int) -> None:
    with pytest.raises(ServiceUnavailable, match="no room") as refused, refusing_when_full():
        raise OSError(number, os.strerror(number))
    assert refused.value.retry_after_s == 60


def test_another_error_of_the_disk_stays_ours() -> None:
    with pytest.raises(OSError, match="Input/output"), refusing_when_full():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
