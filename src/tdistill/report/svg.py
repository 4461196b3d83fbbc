"""From a matplotlib figure to inline SVG that follows the page's colours and fonts.

Figures are drawn with stand-in colours, one for each CSS variable of the page; in the SVG text each
stand-in becomes ``var(--name)``, so one figure serves the light and the dark theme.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER, ACCENT = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
SERIES = ["#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15"]
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    ACCENT: "--accent",
    **{colour: f"--s{i + 1}" for i, colour in enumerate(SERIES)},
}

_OF_MODEL = "#0b"  # and four digits: the number of a model

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tdistill",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 9.5,
    "axes.unicode_minus": True,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A blank figure with one pair of axes in the page's style.

    Args:
        width: in inches; one inch is 72 units of the SVG's view box.
        height: in inches.

    Yields:
        The figure and its axes. Draw and call ``to_svg`` inside the ``with``.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Text is left to the browser, so a glyph that matplotlib's own font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height))
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(RULE)
        axes.tick_params(colors=MUTED, length=3, width=0.6, labelsize=9)
        axes.set_axisbelow(True)
        yield figure, axes


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an ``svg`` element to put into HTML.

    Args:
        figure: drawn inside ``drawing``.
        name: prefix of every id in it; must be unique on the page.
        title: what the figure is, for screen readers.
        description: what it shows, for screen readers.

    Returns:
        The element's text: transparent, as wide as its box, no external reference.
    """
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # Inline SVG needs no namespaces, and the page is then free of anything like an address.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="(m\d+)-(\d+)"', r'class="\1" id="\1-\2"', text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(_OF_MODEL + "([0-9a-f]{4})", lambda found: f"var(--m{int(found[1], 16)})", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = (
        f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1).strip()


def plain_numbers(axes: Axes, *, which: str = "xy") -> None:
    """Tick labels as plain numbers with a true minus sign, also on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    for axis in [axes.xaxis] * ("x" in which) + [axes.yaxis] * ("y" in which):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}"))
        )


def model_colour(number: int) -> str:
    """The stand-in colour of a model's lines; the page says what it is, and may change it."""
    return f"{_OF_MODEL}{number:04x}"


def of_model(number: int, artists: Iterable[Artist]) -> None:
    """Mark lines and areas as a model's: the page shows or hides all of class ``m<number>``.

    Args:
        number: of the model.
        artists: all that a figure draws of it, in one call.
    """
    for place, artist in enumerate(artists):
        artist.set_gid(f"m{number}-{place}")


def css_variable(colour: str) -> str:
    """The CSS value behind a stand-in colour, for legends in HTML."""
    return f"var({VARIABLES[colour]})"
