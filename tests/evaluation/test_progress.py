"""How far scoring is: lines in a file, a bar on a terminal, nothing where nobody asked."""

import io

from rich.console import Console

from mmjax.evaluation.progress import ScoringProgress


def show(seconds: list[float], *, terminal: bool = False) -> list[str]:
    """What is shown of 100 questions in batches of 25, each batch done at one of these seconds."""
    screen, times = io.StringIO(), iter([0.0, *seconds])
    console = Console(file=screen, force_terminal=terminal, width=120)
    progress = ScoringProgress(console, clock=lambda: next(times))
    with progress.part("easy_vqa", 100, "questions") as done:
        for _ in seconds:
            done(25)
    return screen.getvalue().splitlines()


def test_a_line_comes_every_few_seconds_and_at_the_end():
    assert show([6.0, 8.0, 12.0, 13.0]) == [
        "easy_vqa: 100 questions; the first batch is compiled ...",
        "easy_vqa: 25 of 100 questions",
        "easy_vqa: 75 of 100 questions  0:00:03 left",
        "easy_vqa: 100 of 100 questions",
    ]


def test_what_takes_a_moment_is_said_in_two_lines():
    assert len(show([0.1, 0.2, 0.3, 0.4])) == 2


def test_on_a_terminal_there_is_a_bar():
    shown = "\n".join(show([0.1, 0.2, 0.3], terminal=True))
    assert "75/100" in shown and "easy_vqa" in shown


def test_nobody_is_told_where_nobody_asked(capsys):
    with ScoringProgress().part("easy_vqa", 100, "questions") as done:
        done(25)
    assert capsys.readouterr() == ("", "")
