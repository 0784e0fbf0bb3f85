"""Pages are built of parts: a text is escaped wherever it stands, and what is no piece of HTML is a text."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("plotly", reason="the lab extra is not installed")

from sgd_sai import html
from sgd_sai.html import Axis, Chart, Row, Section, element, joined
from tests.html.outline import Outline

EVIL = '"><script>alert(1)</script><!--'


def page(text: str) -> str:
    """A page with the text at each place that takes one; the types forbid some of these, at run time too."""
    chart = Chart(text, text, Axis(text), Axis({text: text}), [{"name": text, "text": [text], "y": []}], text)
    parts = [
        Row([chart], "single"),
        html.table([text], [[text]], kind="results"),
        html.figure(text, text, text),
        element("img", alt=text, src=text),
        text,
    ]
    section = Section(text, text, parts, {text: (text, text)}, id=text)  # type: ignore[arg-type]
    return html.build(
        text, [text], [section], {text: [text]}, choices=(text, {text: text}), method=html.joined([text])
    )


def test_no_place_takes_a_text_as_html() -> None:
    assert Outline(page(EVIL)).elements == Outline(page("x")).elements


def test_what_is_no_piece_cannot_become_one_by_a_slip() -> None:
    bold = element("b", "x")
    assert joined([f"{bold}"]).markup == "Html(markup=&#x27;&lt;b&gt;x&lt;/b&gt;&#x27;)"
    assert joined([bold, "<", bold], "&").markup == "<b>x</b>&amp;&lt;&amp;<b>x</b>"
    with pytest.raises(TypeError):
        "".join([bold])  # type: ignore[list-item]


def test_data_of_a_script_hold_no_sign_of_html() -> None:
    """Or `<!--<script>` would keep the script from ending where it does."""
    written = html.markup.script_json({EVIL: "\u2028&"}).markup
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {EVIL: "\u2028&"}


def test_what_does_not_show_is_replaced() -> None:
    """ESC, the mark that turns the direction of writing, half of a character; not spaces and umlauts."""
    assert joined(["a\x1b[2J\u202e\udcff\u00a0ü\n"]).markup == "a\ufffd[2J\ufffd\ufffd\u00a0ü\n"


@pytest.mark.parametrize("key", ["name", "text"])
def test_plotly_draws_tags_as_text(key, browser, tmp_path) -> None:
    name = '<b>w</b> <a href="https://example.org">&lt;</a>'
    line = {key: name if key == "name" else [name], "x": [1], "y": [1], "mode": "markers", "size": 40}
    section = Section("s", "", [Row([Chart("c", "c", Axis(name), Axis(), [line])], "single")])
    path = tmp_path / "page.html"
    path.write_text(html.build("t", [], [section], {}), "utf-8")
    shown = browser.new_page()
    shown.goto(path.as_uri())
    shown.locator(".point").hover(force=True)
    assert name in shown.locator(".hovertext").text_content()
    assert shown.locator(".xtitle").text_content() == name
    assert shown.locator("svg a").count() == 0
    shown.close()
