"""What writes pages from records: `python -m scripts.tables`, `python -m scripts.figures`."""
