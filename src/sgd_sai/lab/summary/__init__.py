"""The content of records, computed once: reports, figures and the documentation say no more.

rows          a part per task and setting, a row per optimizer and learning rate
statistics    runs against AdamW's, seed by seed
sentences     the result in plain sentences
cells         cells of the tables of results, as text
"""

from sgd_sai.lab.summary.rows import Row, TaskSummary, by_task

__all__ = ["Row", "TaskSummary", "by_task"]
