"""Fonts of the PDF, embedded, and text that they can write."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from xml.sax.saxutils import escape

from simulations.report.style import CSS

REGULAR, BOLD = "Vera", "VeraBd"
"""Bitstream Vera comes with reportlab, free of charge and free to embed."""
WRITTEN = {
    **{"ε": "epsilon", "δ": "delta", "σ": "sigma", "μ": "mu", "α": "alpha", "β": "beta", "ρ": "rho", "π": "pi"},
    **{"→": "->", "←": "<-", "‑": "-", "✓": "yes", "✗": "no", "\u202f": " ", "\u2009": " "},
}
"""What the font has no glyph for, in words."""
COLOURS: dict[str, str] = dict(reversed(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", CSS)))
"""The page's colours by name; of each the first that the style sheet has, which is the light one."""


@lru_cache(maxsize=1)
def register_fonts() -> frozenset[int]:
    """Make the fonts known to reportlab; the characters that both of them have."""
    from reportlab.pdfbase.pdfmetrics import registerFont
    from reportlab.pdfbase.ttfonts import TTFont

    fonts = [TTFont(name, f"{name}.ttf") for name in (REGULAR, BOLD)]
    for font in fonts:
        registerFont(font)
    return frozenset.intersection(*(frozenset(font.face.charToGlyph) for font in fonts))


def plain(text: str) -> str:
    """Text in characters that the font has: Greek in words, letters without marks, the rest as ``<U+4E2D>``."""
    known = register_fonts()
    return "".join(_written(char, known) for char in unicodedata.normalize("NFC", text))


def markup(text: str) -> str:
    """`plain` text for reportlab's paragraphs, which read tags: escaped."""
    return escape(plain(text))


def _written(char: str, known: frozenset[int]) -> str:
    if char in WRITTEN:
        return WRITTEN[char]
    if char in "\n\t\r":
        return " "
    if ord(char) in known and unicodedata.category(char) not in ("Cc", "Cf"):
        return char
    base = unicodedata.normalize("NFKD", char)[0]
    return base if ord(base) in known and base.isalnum() else f"<U+{ord(char):04X}>"
