"""Tasks are found by listing their folder, and named in messages."""

import importlib
import pathlib
import sys
from collections.abc import Iterator

import pytest

from mmjax.config.load import load
from mmjax.errors import InputError
from mmjax.evaluation import tasks as package
from mmjax.evaluation.tasks import find_task, tasks
from tests import squares

OWN = """
from mmjax.evaluation.scores import exact_match
from mmjax.evaluation.tasks.base import Task


class Guess(Task):
    name = "guess"

    def problems(self, recipe):
        yield f"{recipe.name} cannot be guessed."

    def images(self, data, split, tokenizer=None):
        return []

    def question_only_baseline(self, data, split, questions):
        return []

    def score(self, questions, answers):
        return exact_match(questions, answers)


TASK = Guess()
"""


@pytest.fixture
def own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file with a task in the folder of tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "guess.py").write_text(OWN)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("mmjax.evaluation.tasks.guess", None)
    if hasattr(package, "guess"):
        del package.guess


def test_every_task_has_the_name_it_is_found_by() -> None:
    assert {"captions", "easy_vqa"} <= set(tasks())
    assert all(find_task(name).name == name for name in tasks())


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no evaluation task 'easy_vqs'. Did you mean easy_vqa\?"):
        find_task("easy_vqs")


@pytest.mark.usefixtures("own")
def test_a_task_of_ones_own_is_one_file(tmp_path: pathlib.Path) -> None:
    assert find_task("guess").answer_tokens(load_squares(tmp_path).evaluation) == 4
    with pytest.raises(InputError, match=r"^squares cannot be guessed\.$"):
        load(squares.__file__, {**squares.settings(tmp_path), "evaluation.tasks": "guess"})


def load_squares(folder: pathlib.Path):
    return load(squares.__file__, squares.settings(squares.write_data(folder)))
