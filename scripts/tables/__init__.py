"""The tables of README and docs, a module for each subject."""
