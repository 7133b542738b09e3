"""Tasks by name."""

from mmjax.errors import InputError
from mmjax.evaluation.tasks.base import Task
from mmjax.evaluation.tasks.captions import CaptionsTask
from mmjax.evaluation.tasks.easy_vqa import EasyVqaTask

TASKS: dict[str, Task] = {task.name: task for task in (EasyVqaTask(), CaptionsTask())}


def find_task(name: str) -> Task:
    """The task of that name. Raises InputError for an unknown one."""
    if name not in TASKS:
        raise InputError(
            f"There is no evaluation task {name!r}; there {'is' if len(TASKS) == 1 else 'are'} {', '.join(TASKS)}."
        )
    return TASKS[name]
