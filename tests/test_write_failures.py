"""What a message advises about a file that cannot be written."""

import errno
import os

import pytest

from supdist.engine.cli.exit import code_of, lack_of
from supdist.engine.errors import CacheError, LogError, SandboxLost, SandboxUnavailable, TaskError
from supdist.engine.runlog.files import log_error
from supdist.engine.write_failures import remedy_for
from supdist.handlers import NoAccess


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/logs/x")


@pytest.mark.parametrize("number", errno.errorcode)
def test_room_is_asked_for_only_where_it_is_missing(number: int) -> None:
    is_full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("make room" in remedy_for(os_error(number), "choose another folder")) is is_full
    message = str(log_error("/logs", os_error(number)))
    assert ("Make room" in message) is is_full
    # The cause in its own words, and what helps in any case.
    assert os.strerror(number) in message
    assert message.endswith("hoose another log_dir")
    assert is_full is ("make room" in str(lack_of(os_error(number))))


def test_each_error_has_the_exit_code_of_its_kind() -> None:
    errors = [TaskError(""), SandboxUnavailable("", ""), SandboxLost(""), LogError(""), CacheError("")]
    assert [code_of(each) for each in errors] == [2, 4, 4, 6, 6]
    assert [code_of(each) for each in (NoAccess(""), os_error(errno.EROFS), ValueError(""))] == [5, 6, 1]
