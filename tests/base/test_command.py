"""How a command ends: one message, and a code."""

import errno

import pytest

from mmjax.base.command import run_command
from mmjax.errors import ExitCode


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[ExitCode, str]:
    def command() -> None:
        raise error

    return run_command(command), capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "path", "message"),
    [
        (errno.ENOSPC, "a/b", "mmjax: a/b cannot be used: No space left on device.\n"),
        (errno.ENOSPC, None, "mmjax: A file cannot be used: No space left on device.\n"),
        (errno.EROFS, "a", "mmjax: a cannot be used: Read-only file system.\n"),
        (errno.ENAMETOOLONG, "a", "mmjax: a cannot be used: File name too long.\n"),
        (errno.EACCES, "a", "mmjax: a cannot be used: Permission denied.\n"),
        (errno.EFBIG, "a", "mmjax: a cannot be used: File too large.\n"),
    ],
)
def test_what_a_disk_refuses_is_one_message(capsys, number, path, message):
    error = OSError(number, {errno.ENOSPC: "No space left on device"}.get(number, ""), path)
    error.strerror = message.partition(": ")[2].rpartition(": ")[2].removesuffix(".\n")
    assert ended(error, capsys) == (ExitCode.WRONG_INPUT, message)


def test_a_name_that_is_not_utf_8_is_one_message(capsys):
    with pytest.raises(UnicodeEncodeError) as caught:
        "a\udcff".encode()
    code, said = ended(caught.value, capsys)
    assert code == ExitCode.WRONG_INPUT and said.startswith("mmjax: 'a\\udcff' is not UTF-8")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no", "a"), ConnectionResetError()])
def test_other_errors_of_the_system_keep_their_traceback(capsys, error):
    with pytest.raises(type(error)):
        ended(error, capsys)


def test_other_errors_of_encoding_keep_their_traceback(capsys):
    with pytest.raises(UnicodeEncodeError) as caught:
        "é".encode("ascii")
    with pytest.raises(UnicodeEncodeError):
        ended(caught.value, capsys)
