"""The study: real models on real data, several optimizers under the same conditions, and a report.

From the command line to the page:

arguments     options of the commands; compare and tune have a file each, sweep and report a folder
tasks/        a task at three scales: a model, its batches, a held-out measurement; schedules beside it
runs/         a run: one task, one optimizer, one seed; several runs side by side
records       the files that a run leaves; fields, provenance and samples are parts of them
schema        the one function that compares what was read with its types; faults: what differs, in one line
tuned         the tuned learning rates, which `tune` writes and `compare` reads
summary/      records as rows of tables, statistics, sentences
report/       the page and its figures
packed        a study in two files, each a table; reading finds runs in both forms
sweep/        grids of learning rate × weight decay, and their page
"""
