"""Sets formulas between dollar signs as pictures while the site is built.

So a page needs no script and no font of another host, and what can not be set stops the build.
"""

import html
import re
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of how it finds its font
    import ziamath

# Paths in place of symbols, whose names would be the same in all pictures of a page.
ziamath.config.svg2 = False
_SIZE = 24
# In the size of the text. A sum in \left( and \right) comes out at 82: use \big( and \big) there.
_TALLEST = 8
_FORMULA = re.compile(
    r'<(?:span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<latex>.*?)\\[)\]]</(?:span|div)>'
    r"(?P<after>[.,;:?!)]*)",
    re.S,
)


# TeX puts spaces about names of functions by itself.
_NAME = r"\\(?:max|min|log|cos|sin|tan|arccos|text)\b"
_BEFORE = re.compile(rf"(?<=[\w)}}])\s*(?={_NAME})")
_AFTER = re.compile(rf"({_NAME})\s*(?=\\(?:sum|frac|theta|alpha|min)|\w\b)")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The page with its formulas in pictures, as tall as the text and on its line."""
    name = page.file.src_uri

    def drawn(match: re.Match[str]) -> str:
        svg = picture(html.unescape(match["latex"]).strip(), match["kind"] == "[", name)
        after = match["after"]
        # No line begins with a comma.
        return f'<span class="formula">{svg}{after}</span>' if after else svg

    return _FORMULA.sub(drawn, content)


def picture(latex: str, block: bool, where: str) -> str:
    """A formula as SVG, whose lengths are in the size of the text around it.

    Args:
      latex: the formula.
      block: whether it stands by itself.
      where: what to name if it can not be set.

    Returns:
      HTML.

    Raises:
      ValueError: if it can not be set, or is so tall that it was not set right.
    """
    try:
        spaced = _AFTER.sub(r"\1\\,", _BEFORE.sub(r"\\,", latex))
        svg = ziamath.Latex(spaced, size=_SIZE, color="currentColor", inline=not block).svg()
    except Exception as error:
        raise ValueError(f"formula {latex!r} of {where} can not be set: {error!r}") from error
    box = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', svg)
    assert box is not None
    _, top, width, height = (float(number) / _SIZE for number in box.groups())
    if height > _TALLEST:
        raise ValueError(f"formula {latex!r} of {where} can not be set: it is {height:.0f} em tall")
    style = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{-top - height:.3f}em"
    label = html.escape(latex, quote=True)
    inside = svg[svg.index(">") + 1 :]
    svg = (
        f'<svg class="formula" role="img" aria-label="{label}" style="{style}" {box[0]} '
        f'xmlns="http://www.w3.org/2000/svg">{inside}'
    )
    return f'<div class="formula">{svg}</div>' if block else svg
