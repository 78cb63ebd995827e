"""HTML pages from the templates of scripts/templates/ (Jinja2): each is one file that loads no other."""
import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from helper.util.errors import printable


def render(template: str, **context) -> str:
    """The page that `template`, such as 'report.html', makes of its context. Texts are escaped, Markup is not."""
    return _ENVIRONMENT.get_template(template).render(**context)


def formula(text: str) -> Markup:
    """A formula such as 'Σ_{i: y_i=c} z_i' as HTML: single letters are italic, _c and _{...} subscripts."""
    html = re.sub("(?<![A-Za-z])[A-Za-z]\u0304?(?![A-Za-z])", r"<i>\g<0></i>", str(escape(text)))
    html = re.sub(r"_(<i>.*?</i>)", r"<sub>\1</sub>", html)
    html = re.sub(r"_\{(.*?)\}", r"<sub>\1</sub>", html)
    return Markup(f'<span class="formula">{html}</span>')


def prose(text: str) -> Markup:
    """A text as HTML, with formulas between dollar signs: 'the mean $m_c$ of a class'."""
    pieces = text.split("$")
    return Markup("").join(formula(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces))


def markdown(text: str) -> str:
    """A text in one line of Markdown, in a table too, without HTML of its own."""
    return str(escape(printable(text))).replace("|", "\\|").replace("&#39;", "'").replace("&#34;", '"')


def markdown_table(head: Sequence[str], rows: Iterable[Sequence], numbers: bool = False) -> str:
    """A table in Markdown, without a line's end; numbers: whether all columns but the first are set to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows))


def _png(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


_ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                           undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters |= {"formula": formula, "prose": prose, "md": markdown, "png": _png, "printable": printable}
