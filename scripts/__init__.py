"""Tables and figures of the pages, from records: `python -m scripts.tables`, `python -m scripts.figures`."""
