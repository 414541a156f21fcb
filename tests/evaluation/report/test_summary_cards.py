"""Pictures for TensorBoard have the shape of a card, and text that is readable at its size."""

from __future__ import annotations

import numpy as np
import pytest

from caption_jax.evaluation.report.summary_cards import attention_card, caption_card

RED = (220, 30, 30)
HEIGHT, WIDTH = 432, 720
CARD_HEIGHT = 215  # pixels of a picture on a card of TensorBoard 2.21 in a window 1,400 pixels wide


def make_image(colour: tuple[int, int, int] = RED, height: int = 30, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def count_dark(pixels: np.ndarray) -> int:
    """Returns the number of pixels of text."""
    return int((pixels.max(axis=-1) < 150).sum())


def find_dark_rows(pixels: np.ndarray) -> np.ndarray:
    return np.flatnonzero((pixels.max(axis=-1) < 150).any(axis=1))


def test_a_caption_card_shows_the_image_on_the_left_and_text_on_the_right():
    card = caption_card(make_image(), "a red square", ["red", "a square"])
    assert card.shape == (HEIGHT, WIDTH, 3) and card.dtype == np.uint8
    assert tuple(card[100, 100]) == RED
    text = card[:, 420:]
    caption_only = caption_card(make_image(), "a red square", [])[:, 420:]
    assert count_dark(text) > count_dark(caption_only) > 200
    assert (text[:, -8:] == 255).all()  # the margin


def test_text_is_at_least_eleven_pixels_high_on_a_card():
    rows = find_dark_rows(caption_card(make_image(), "Äg", [])[:, 420:])
    scale = CARD_HEIGHT / HEIGHT
    assert (rows[-1] - rows[0] + 1) * scale >= 11  # from the accent to the descender
    rows = find_dark_rows(attention_card(make_image((255, 255, 255)), ["Äg"], np.ones((1, 49))))
    assert (rows[-1] - rows[0] + 1) * scale >= 10


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " ",
        "a very long caption about a red square " * 20,
        "x" * 500,
        "costs $5_{x}$ or $1 \\frac{ $",
        "漢字 🙂 مرحبا",
    ],
)
def test_any_caption_stays_on_the_card(caption):
    card = caption_card(make_image(), caption, [caption] * 5)
    assert card.shape == (HEIGHT, WIDTH, 3)
    assert count_dark(card[:, 420:]) > 50  # an empty caption is shown as "(empty)"
    assert (card[:, -6:] == 255).all() and (card[-2:] == 255).all()


def test_images_of_any_aspect_ratio_keep_it():
    wide = caption_card(make_image(height=10, width=100), "a", [])
    tall = caption_card(make_image(height=100, width=10), "a", [])
    for card, aspect_ratio in ((wide, 10), (tall, 0.1)):
        is_red = (card == RED).all(axis=-1)
        assert is_red.any(axis=0).sum() / is_red.any(axis=1).sum() == pytest.approx(aspect_ratio, rel=0.1)


def find_panels(card: np.ndarray) -> list[np.ndarray]:
    """Returns the panels of a card with one row of panels, which are separated by white columns."""
    rows = card[12:60]
    is_white = (rows == 255).all(axis=(0, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_white, [True]]).astype(int)))
    return [card[12:, start:end].astype(float) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_attention_highlights_the_attended_cell():
    attention = np.zeros((2, 16))
    attention[0, 0] = 1.0  # top left
    attention[1, 7] = 0.1  # second row, last column; weak attention is scaled up
    image, first, second = find_panels(attention_card(make_image((240, 240, 240), 64, 64), ["dog", "ball"], attention))
    side = image.shape[1] // 4 * 4
    assert image[:side].min() > 235
    for panel, cell in ((first, (0, 0)), (second, (1, 3))):
        cells = panel[:side, :side].reshape(4, side // 4, 4, side // 4, 3).mean(axis=(1, 3, 4))
        assert np.unravel_index(cells.argmax(), cells.shape) == cell
        assert cells[3, 1] < 90 < 170 < cells.max()


def test_the_fraction_of_attention_on_the_vector_is_next_to_the_word():
    attention = np.zeros((1, 5))
    attention[0, 3], attention[0, 4] = 0.25, 0.75
    image = make_image((240, 240, 240), 64, 64)
    with_vector = attention_card(image, ["dog"], attention)
    grid_only = attention_card(image, ["dog"], attention[:, :4])
    np.testing.assert_array_equal(find_panels(with_vector)[1][:100], find_panels(grid_only)[1][:100])
    assert count_dark(with_vector[-100:]) > count_dark(grid_only[-100:])


def test_attention_cards_support_oblong_grids_empty_captions_long_captions_and_a_single_position():
    image = make_image()
    shape = (HEIGHT, WIDTH, 3)
    assert attention_card(image, ["a"], np.ones((1, 6)), grid=(2, 3)).shape == shape
    assert attention_card(image, ["a"], np.ones((1, 1))).shape == shape
    assert attention_card(image, [], np.zeros((0, 4))).shape == shape
    assert attention_card(image, ["a" * 100, "b"], np.ones((2, 4))).shape == shape
    long_caption = attention_card(image, ["a"] * 40, np.ones((40, 4)))
    assert long_caption.shape == shape
    longer_caption = attention_card(image, ["a"] * 41, np.ones((41, 4)))
    np.testing.assert_array_equal(long_caption[:, 110:], longer_caption[:, 110:])  # the first words
    assert (long_caption != longer_caption).any()  # the number of words


def test_attention_that_does_not_fit_the_grid_is_rejected():
    with pytest.raises(ValueError, match="7 memory positions"):
        attention_card(make_image(), ["a"], np.ones((1, 7)))
    with pytest.raises(ValueError, match="2 words"):
        attention_card(make_image(), ["a", "b"], np.ones((1, 4)))
