"""Experiments that no command of the package runs."""
