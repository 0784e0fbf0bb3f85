"""A hook of MkDocs: formulas become MathML, which browsers draw without JavaScript, fonts or a network.

In a page, `$…$` is a formula within a line, and a fenced block of `math` is one on its own. GitHub draws
both, too.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from math_core import LatexToMathML

#: What pymdownx.arithmatex makes of formulas, with `generic: true`.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\((?P<inline>.*?)\\\)|\[(?P<block>.*?)\\\])</(?P=tag)>',
    re.DOTALL,
)
CONVERTER = LatexToMathML()


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs: put MathML in the place of a page's formulas; `math_core.LatexError` where one is not LaTeX."""
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    stands_alone = found["block"] is not None
    latex = unescape(found["block"] if stands_alone else found["inline"]).strip()
    mathml = CONVERTER.convert_with_local_state(latex, displaystyle=stands_alone)
    return f'<div class="formula">{mathml}</div>' if stands_alone else mathml
