"""What a finished model is scored on: tasks by name, their baselines, and maps of where the model looks."""

from mmjax.evaluation.evaluate import open_images, run
from mmjax.evaluation.tasks import find_task
from mmjax.evaluation.tasks.base import Split, Task

__all__ = ["Split", "Task", "find_task", "open_images", "run"]
