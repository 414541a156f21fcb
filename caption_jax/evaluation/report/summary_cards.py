"""Pictures for TensorBoard: a caption or the attention of a caption, with text that is readable on TensorBoard's cards.

TensorBoard shows a picture about 215 pixels high and at most 300 to 400 pixels wide, and scales it without
interpolation. The pictures therefore have the shape of a card, at twice its size for sharp displays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from caption_jax.evaluation.report.attention_panels import AttentionPanel, attention_panels
from input_pipeline.extras import optional_packages

with optional_packages("drawing pictures for TensorBoard"):
    from matplotlib import font_manager

Card = UInt8[np.ndarray, "432 720 3"]

EMPTY_CAPTION = "(empty)"  # shown instead of a caption without words

_WIDTH, _HEIGHT = 720, 432
_MARGIN = 12
_FONT_SIZE, _LINE_HEIGHT = 25, 31  # pixels
_WORD_SIZES, _WORD_HEIGHT = (23, 21, 19), 29  # a word that is too wide for its panel is smaller
_MAX_WORDS = 19  # more panels would be too small to see
_BLACK, _GREY, _WHITE = "#1a1a1a", "#5c5c5c", "#ffffff"


def caption_card(image: UInt8[np.ndarray, "height width 3"], caption: str, references: Sequence[str]) -> Card:
    """Draws an image on the left, and on the right its caption in bold and the references in grey.

    Args:
        image: an image of any size and aspect ratio.
        caption: the generated caption.
        references: reference captions; as many are shown as fit.
    """
    card = Image.new("RGB", (_WIDTH, _HEIGHT), _WHITE)
    photograph = _fit(image, 396, _HEIGHT - 2 * _MARGIN)
    card.paste(photograph, (_MARGIN, _MARGIN))
    left = photograph.width + 2 * _MARGIN
    canvas, width, top = ImageDraw.Draw(card), _WIDTH - left - _MARGIN, _MARGIN - 4
    texts = [(caption.strip() or EMPTY_CAPTION, True), *((f"“{reference}”", False) for reference in references)]
    for text, is_caption in texts:
        font = _load_font(_FONT_SIZE, bold=is_caption)
        lines = _wrap(text, font, width, max_lines=6 if is_caption else 5)
        if top + len(lines) * _LINE_HEIGHT > _HEIGHT:
            break
        for line in lines:
            canvas.text((left, top), line, _BLACK if is_caption else _GREY, font)
            top += _LINE_HEIGHT
        top += _LINE_HEIGHT // 2
    return np.asarray(card)


def attention_card(
    image: UInt8[np.ndarray, "height width 3"],
    words: Sequence[str],
    attention: Float[np.ndarray, "words memory"],
    *,
    grid: tuple[int, int] | None = None,
) -> Card:
    """Draws the original image and the panels of `attention_panels`, each above its word.

    Of a longer caption, the first 19 words are shown, which the label of the image states. If the memory contains the
    image vector, the percentage after a word is the fraction of attention on the vector.

    Args:
        image: see `attention_panels`.
        words: see `attention_panels`; if there are none, only the original image is drawn.
        attention: see `attention_panels`.
        grid: see `attention_panels`.

    Raises:
        ValueError: see `attention_panels`.
    """
    panels = attention_panels(image, words, attention, grid=grid)
    cells = [(_label_image(panels), np.asarray(image, np.uint8))]
    cells += [(_label_panel(panel), panel.pixels) for panel in panels[:_MAX_WORDS]]
    smallest_font = _load_font(_WORD_SIZES[-1], bold=False)
    longest_word = max(smallest_font.getlength(label) for label, _ in cells)
    layout = _choose_layout(len(cells), image.shape[1] / image.shape[0], longest_word)
    card = Image.new("RGB", (_WIDTH, _HEIGHT), _WHITE)
    canvas = ImageDraw.Draw(card)
    for i, (label, pixels) in enumerate(cells):
        row, column = divmod(i, layout.columns)
        left, top = _MARGIN + column * layout.cell_width, _MARGIN + row * layout.cell_height
        card.paste(_fit(pixels, layout.panel_width, layout.panel_height), (left, top))
        _draw_word(canvas, (left, top + layout.panel_height), label, layout.cell_width - _MARGIN // 2)
    return np.asarray(card)


def _label_image(panels: Sequence[AttentionPanel]) -> str:
    if not panels:
        return EMPTY_CAPTION
    if len(panels) > _MAX_WORDS:
        return f"{_MAX_WORDS} of {len(panels)}"
    return "image" if panels[0].vector_fraction is None else "% vector"


def _label_panel(panel: AttentionPanel) -> str:
    return panel.word if panel.vector_fraction is None else f"{panel.word} {panel.vector_fraction:.0%}"


def _draw_word(canvas: ImageDraw.ImageDraw, position: tuple[int, int], word: str, width: int) -> None:
    """Draws a word in the largest font in which it fits, or its beginning if there is none."""
    fonts = [_load_font(size, bold=False) for size in _WORD_SIZES]
    font = next((font for font in fonts if font.getlength(word) <= width), fonts[-1])
    canvas.text(position, _wrap(word, font, width, max_lines=1)[0], _BLACK, font)


@dataclass(frozen=True)
class _Layout:
    """A grid of panels with a word below each one. Sizes are in pixels, and those of cells include the gap."""

    columns: int
    cell_width: int
    cell_height: int
    panel_width: int
    panel_height: int


def _choose_layout(count: int, aspect_ratio: float, longest_word: float) -> _Layout:
    """Returns the layout with the largest panels in which the longest word fits below its panel, if there is one."""
    layouts = [_make_layout(columns, count, aspect_ratio) for columns in range(1, count + 1)]
    wide_enough = [layout for layout in layouts if layout.cell_width - _MARGIN // 2 >= longest_word]
    return max(wide_enough or layouts[:1], key=lambda layout: layout.panel_width * layout.panel_height)


def _make_layout(columns: int, count: int, aspect_ratio: float) -> _Layout:
    rows = math.ceil(count / columns)
    cell_width, cell_height = (_WIDTH - _MARGIN) // columns, (_HEIGHT - _MARGIN) // rows
    height = max(min(cell_height - _WORD_HEIGHT - 4, (cell_width - _MARGIN) / aspect_ratio), 1.0)
    width = max(height * aspect_ratio, 1.0)
    return _Layout(columns, cell_width, round(height) + _WORD_HEIGHT + 4, round(width), round(height))


def _fit(image: UInt8[np.ndarray, "height width 3"], width: int, height: int) -> Image.Image:
    """Resizes an image to the largest size within `width` x `height` that keeps its aspect ratio."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return Image.fromarray(np.asarray(image, np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Wraps text into lines of at most `width` pixels, and ends it with an ellipsis after `max_lines` lines.

    Lines break at spaces, and inside words that are wider than a line.
    """
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        pieces = _split_word(word, font, width)
        lines = [*lines, *pieces] if lines[-1] else [*lines[:-1], *pieces]
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], f"{last}…"]
    return lines


def _split_word(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


@functools.cache
def _load_font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    """Loads the font that matplotlib includes, which has the letters of most alphabets; others become boxes."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)
