"""Tasks by name: one file each, found by listing this folder."""

from collections.abc import Mapping

from mmjax.base.registry import modules_of
from mmjax.evaluation.tasks.base import Task
from mmjax.recipe.schema import choose


def tasks() -> Mapping[str, Task]:
    """All of them, by name."""
    found = [module.TASK for module in modules_of("mmjax.evaluation.tasks")]
    return {task.name: task for task in found}


def find_task(name: str) -> Task:
    """The task of that name. Raises InputError for an unknown one."""
    return choose(name, tasks(), "evaluation task")
