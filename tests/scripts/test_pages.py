"""HTML pages: what is plain text stays text, and a page loads nothing."""
import pytest
from jinja2 import UndefinedError

from scripts import pages

HOSTILE = "<script>alert(1)</script>&\"'"


def test_texts_are_escaped_and_formulas_are_set():
    assert pages.prose(f"{HOSTILE} $m_c$") == (
        "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39; "
        '<span class="formula"><i>m</i><sub><i>c</i></sub></span>')
    assert "<script" not in pages.render("base.html", title=HOSTILE)


def test_a_page_loads_nothing_and_what_a_template_lacks_is_an_error():
    html = pages.render("base.html", title="T")
    assert html.startswith("<!doctype html>") and "prefers-color-scheme: dark" in html
    assert not any(text in html for text in ("http:", "https:", "@import", "url(", "<link", "<script"))
    with pytest.raises(UndefinedError):
        pages.render("base.html")
