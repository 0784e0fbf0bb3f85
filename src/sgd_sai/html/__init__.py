"""Pages of charts and tables, each one HTML file that needs nothing else.

markup        HTML from parts, in which all text is escaped
page          the page: its sections, and the charts that `template/page.js` draws
table         a table
template/     what every page has in common: the frame, the style, the script
"""

from sgd_sai.html.markup import Content, Html, element, joined
from sgd_sai.html.page import (
    Axis,
    Chart,
    Colours,
    Row,
    Section,
    build,
    document,
    figure,
    plotly_text,
    side_by_side,
)
from sgd_sai.html.table import table

__all__ = [
    "Axis",
    "Chart",
    "Colours",
    "Content",
    "Html",
    "Row",
    "Section",
    "build",
    "document",
    "element",
    "figure",
    "joined",
    "plotly_text",
    "side_by_side",
    "table",
]
