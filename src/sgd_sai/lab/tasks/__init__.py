"""The tasks of the study: one small file each, one entry of `TASKS`."""

from sgd_sai.lab.tasks import cnn, gpt, vit
from sgd_sai.lab.tasks.problem import Problem, Task

TASKS: dict[str, Task] = {task.name: task for task in (gpt.TASK, vit.TASK, cnn.TASK)}

__all__ = ["TASKS", "Problem", "Task"]
