"""`python -m mmjax.chat`: flags, pipes, a terminal, signals."""

import contextlib
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mmjax.chat import __main__ as chat
from tests.chat import tiny_models

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 300  # seconds; a compilation on a busy machine takes a while
# Makes the terminal on stdin that of its session, so that Ctrl-C typed there is a signal; then becomes what it is told.
_ATTACH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
ENDLESS = "--max_new_tokens=1000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_models.save(
        tmp_path_factory.mktemp("decoder") / "model", tiny_models.language_model()
    )


def command(folder: pathlib.Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "mmjax.chat", f"--checkpoint={folder}", *flags]


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    }


def start(folder: pathlib.Path, *flags: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(folder, *flags), stdin=pipe, stdout=pipe, stderr=pipe, env=environment()
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: --checkpoint"),
        (["--checkpoint=x", "--promt=hi"], "--promt"),
        (
            ["--checkpoint=x", "--prompt=hi", "--temperature=-1"],
            "--temperature must be 0 or more, not -1.0",
        ),
        (
            ["--checkpoint=x", "--prompt=hi", "--temperature=nan"],
            "--temperature must be 0 or more, not nan",
        ),
        (
            ["--checkpoint=x", "--prompt=hi", "--top_p=1.5"],
            "--top_p must lie between 0 and 1, not 1.5",
        ),
        (
            ["--checkpoint=x", "--prompt=hi", "--top_p=nan"],
            "--top_p must lie between 0 and 1, not nan",
        ),
        (
            ["--checkpoint=x", "--prompt=hi", "--seed=-1"],
            "--seed must lie between 0 and 4294967295, not -1",
        ),
        (["--checkpoint=x", "--prompt=hi", "--seed=one"], "--seed: invalid int value"),
        (
            ["--checkpoint=x", "--prompt=hi", "--max_new_tokens=0"],
            "--max_new_tokens must be positive, not 0",
        ),
        (
            ["--checkpoint=x", "--prompt=hi", "--dtype=float16"],
            "--dtype: invalid choice: 'float16'",
        ),
        (["--checkpoint=x", "--prompt=hi", "--image=/no/image"], "There is no image /no/image"),
        (["--checkpoint=x", "--prompt="], "nothing to answer"),
        (["--checkpoint=/no/model", "--prompt=hi"], "There is no /no/model"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert chat.main(flags) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("mmjax: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_one_answer(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    assert chat.main([f"--checkpoint={folder}", "--prompt=one?", "--max_new_tokens=5"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out) == 6
    assert shown.out.endswith("\n")
    assert shown.err == "mmjax: The answer was cut after 5 tokens; --max_new_tokens allows more.\n"


def test_an_image_for_a_decoder(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.png").write_bytes(b"")
    assert (
        chat.main([f"--checkpoint={folder}", "--prompt=one?", f"--image={tmp_path / 'a.png'}"]) == 2
    )
    assert "decoder without an encoder" in capsys.readouterr().err


def test_a_pipe_gets_the_answer_and_nothing_else(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    chat.main([f"--checkpoint={folder}", "--prompt=one?", "--max_new_tokens=5"])
    expected = capsys.readouterr()
    process = start(folder, "--max_new_tokens=5")
    out, err = process.communicate(b"one?\n", timeout=PATIENCE)
    assert (process.returncode, out.decode(), err.decode()) == (0, expected.out, expected.err)


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"", "nothing to answer"), (b"\n", "nothing to answer"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_pipe_without_a_question(folder: pathlib.Path, text: bytes, message: str):
    process = start(folder)
    out, err = process.communicate(text, timeout=PATIENCE)
    assert process.returncode == 2
    assert not out
    assert message in err.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_answer(folder: pathlib.Path, number: signal.Signals, code: int):
    with running(start(folder, "--prompt=one?", ENDLESS)) as process:
        assert process.stdout is not None
        process.stdout.read(3)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code
        assert err.decode().strip() in ("mmjax: Interrupted.", "mmjax: Terminated.")


@pytest.mark.slow
def test_a_pipe_may_be_closed_early(folder: pathlib.Path):
    with running(start(folder, "--prompt=one?", ENDLESS)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(3)
        process.stdout.close()
        assert process.wait(timeout=PATIENCE) == -signal.SIGPIPE
        assert not process.stderr.read()


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A process at a terminal of its own, and what it has shown there."""

    def __init__(self, arguments: list[str]):
        self._terminal, inner = pty.openpty()
        attach = [sys.executable, "-c", _ATTACH, *arguments]
        self.process = subprocess.Popen(
            attach,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment(),
            start_new_session=True,
        )
        os.close(inner)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> str:
        """What is shown up to a text; it counts as seen."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self._terminal], [], [], 1)[0]:
                self.shown += os.read(self._terminal, 65536).decode()
        before, _, self.shown = self.shown.partition(text)
        return before

    def insist(self, key: str, text: str) -> None:
        """Presses a key until a text is shown, as a Ctrl-C between two keys may be lost."""
        for _ in range(PATIENCE // 2):
            self.type(key)
            end = time.monotonic() + 2
            while text not in self.shown and (left := end - time.monotonic()) > 0:
                if select.select([self._terminal], [], [], left)[0]:
                    self.shown += os.read(self._terminal, 65536).decode()
            if text in self.shown:
                break
        self.wait_for(text)

    def end(self) -> int:
        """The exit code."""
        with contextlib.suppress(OSError):  # which says that there is nobody left who could write
            while os.read(self._terminal, 65536):
                pass
        return self.process.wait(timeout=PATIENCE)


@pytest.fixture
def terminal(folder: pathlib.Path) -> Iterator[Terminal]:
    terminal = Terminal(command(folder, ENDLESS))
    yield terminal
    terminal.process.kill()
    terminal.process.wait()


def test_a_conversation_at_a_terminal(terminal: Terminal, tmp_path: pathlib.Path):
    terminal.wait_for("Ctrl-D leaves")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("/reset")
    terminal.wait_for("> ")
    terminal.type("one?\n")
    terminal.wait_for("reading")
    terminal.wait_for("\x1b[2K")  # the line with the spinner is gone: the answer begins
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.type("/image\n")
    terminal.wait_for("/image wants the path")
    terminal.wait_for("> ")
    terminal.type(f"/image {tmp_path}/a.png\n")
    terminal.wait_for("cannot look at images")
    terminal.wait_for("> ")
    terminal.type("/sing\n")
    terminal.wait_for("There is no command /sing")
    terminal.wait_for("> ")
    terminal.type("two")
    terminal.wait_for("two")
    terminal.insist("\x03", "Ctrl-D leaves")
    terminal.type("/help\n")
    terminal.wait_for("/reset")
    terminal.wait_for("> ")
    terminal.type("/reset\n")
    terminal.wait_for("A new conversation begins")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.slow
def test_leaving_by_command_and_by_ctrl_c_while_loading(folder: pathlib.Path, terminal: Terminal):
    early = Terminal(command(folder))
    early.wait_for("loading")
    early.type("\x03")
    assert early.end() == 130
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0
