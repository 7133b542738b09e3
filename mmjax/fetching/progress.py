"""What a person sees of one fetch: a bar on a terminal, plain lines elsewhere."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text


class FetchProgress:
    """Shows what is being done for one name."""

    def __init__(self, name: str, console: Console):
        self._name, self._console = name, console
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, text: str, total: int | None = None) -> None:
        """Something new begins, of `total` bytes if that is known."""
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(f"{self._name}: {text}", total=total)
        else:
            self.note(text)

    def advance(self, done: int) -> None:
        """So many bytes of it are done. A client may write more than the total, for itself; that is shown as all."""
        if self._bar:
            for task in self._bar.tasks:
                self._bar.update(task.id, completed=done if task.total is None else min(done, task.total))

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)


class _Amount(DownloadColumn):
    """Bytes done and in all, where that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)
