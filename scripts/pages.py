"""A page of text, tables and pictures in one HTML file that needs nothing else: for a screen, and for paper."""
import base64
import re
from html import escape

STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 66rem; background: #fff; color: #222;
  font: 1rem/1.55 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif }
h1, h2, th, td, figcaption b, .facts { font-family: system-ui, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; font-weight: 600; line-height: 1.25; margin: 0 0 .4rem }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .6rem }
p, figcaption, ul { max-width: 44rem }
figure { margin: 1.2rem 0 0 }
img { display: block; max-width: 100%; max-height: 92vh }
figcaption { margin-top: .6rem; font-size: .95rem; color: #333 }
.facts { color: #555; font-size: .85rem; overflow-wrap: anywhere }
code { font: .85em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .8rem .22rem 0; text-align: right; white-space: nowrap }
th { font-weight: 600; border-bottom: 1px solid #999; vertical-align: bottom }
td { border-bottom: 1px solid #ececec }
.text { text-align: left }
.group { text-align: center; border-bottom: none; padding-top: .6rem }
.formula { white-space: nowrap }
sub { line-height: 1 }
@page { margin: 16mm }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt }
  h2 { break-after: avoid; margin-top: 1.4rem }
  figure, tr { break-inside: avoid }
  img { max-height: 120mm }
  thead { display: table-header-group }
  table { font-size: 8pt }
  th, td { padding: .1rem .7rem .1rem 0 }
}
"""


def page(title: str, parts: list[str]) -> str:
    """The whole file; title: plain text; parts: HTML."""
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n")


def formula(text: str) -> str:
    """A formula such as 'Σ_{i: y_i=c} z_i' as HTML: single letters are italic, _c and _{...} subscripts."""
    text = re.sub("(?<![A-Za-z])[A-Za-z]\u0304?(?![A-Za-z])", r"<i>\g<0></i>", escape(text, quote=False))
    text = re.sub(r"_(<i>.*?</i>)", r"<sub>\1</sub>", text)
    return "<span class=\"formula\">" + re.sub(r"_\{(.*?)\}", r"<sub>\1</sub>", text) + "</span>"


def figure(image: bytes, alt: str, caption: str) -> str:
    """A PNG picture; alt: plain text; caption: HTML."""
    data = base64.b64encode(image).decode()
    return (f'<figure>\n<img alt="{escape(alt)}" src="data:image/png;base64,{data}">\n'
            f"<figcaption>{caption}</figcaption>\n</figure>")


def table(head: list[str], rows: list[list], text: int = 1, groups: tuple[tuple[str, int], ...] = ()) -> str:
    """Cells of plain text, the first `text` columns to the left and the others to the right.

    groups: (title, columns) of each stretch of columns after the `text` ones, for a line above the head
    """
    def line(cells, tag):
        left, right = f'<{tag} class="text">', f"<{tag}>"
        return "<tr>" + "".join(f"{left if i < text else right}{escape(str(cell))}</{tag}>"
                                for i, cell in enumerate(cells)) + "</tr>"

    above = "".join(f'<th class="group" colspan="{span}">{escape(title)}</th>' for title, span in groups)
    above = above and f'<tr><th class="group" colspan="{text}"></th>{above}</tr>'
    body = "\n".join(line(row, "td") for row in rows)
    return f"<table>\n<thead>{above}{line(head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
