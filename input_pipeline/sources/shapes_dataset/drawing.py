"""Renders scenes with antialiasing, and with small random variations of position, size, angle and colour."""

from __future__ import annotations

import io
import math
import random

from PIL import Image, ImageDraw

from input_pipeline.sources.shapes_dataset.scenes import Group, Scene, choose

SIDE = 96  # pixels
_OVERSAMPLING = 3

_COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (45, 85, 220),
    "yellow": (245, 205, 30),
    "purple": (150, 60, 190),
    "black": (30, 30, 30),
}
_BACKGROUNDS = ((245, 245, 240), (232, 236, 242), (240, 232, 226), (228, 240, 230), (222, 222, 222))
_RADIUS = {"small": (0.070, 0.082), "large": (0.125, 0.140)}  # fractions of the image side
# Positions of objects along the axis of a group, by number of objects. Even three of the largest objects do not touch.
_POSITIONS = {1: (0.5,), 2: (0.33, 0.67), 3: (0.19, 0.5, 0.81)}
_POSITION_JITTER = {1: 0.09, 2: 0.03, 3: 0.01}


def draw_scene(scene: Scene, seed: str) -> Image.Image:
    """Renders a scene as an RGB image of `SIDE` x `SIDE` pixels, deterministic for a given seed."""
    rng = random.Random(seed)
    canvas = Image.new("RGB", (SIDE * _OVERSAMPLING,) * 2, _jitter_colour(rng, choose(rng, _BACKGROUNDS), 6))
    pen = ImageDraw.Draw(canvas)
    _draw_group(pen, rng, scene.first, scene.side)
    if scene.second is not None:
        _draw_group(pen, rng, scene.second, {"left": "right", "top": "bottom"}[scene.side])
    return canvas.reduce(_OVERSAMPLING)


def encode_png(image: Image.Image) -> bytes:
    """Encodes an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _draw_group(pen: ImageDraw.ImageDraw, rng: random.Random, group: Group, side: str) -> None:
    for centre in _POSITIONS[group.count]:
        along = centre + _uniform(rng, -1, 1) * _POSITION_JITTER[group.count]
        across = 0.26 + _uniform(rng, -0.04, 0.04)
        if side in ("right", "bottom"):
            across = 1 - across
        x, y = (across, along) if side in ("left", "right") else (along, across)
        radius = _uniform(rng, *_RADIUS[group.size])
        colour = _jitter_colour(rng, _COLOURS[group.colour], 12)
        _draw_object(pen, rng, group.shape, x, y, radius, colour)


def _draw_object(
    pen: ImageDraw.ImageDraw,
    rng: random.Random,
    shape: str,
    x: float,
    y: float,
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    scale = SIDE * _OVERSAMPLING
    x, y, radius = x * scale, y * scale, radius * scale
    rotation = _uniform(rng, -0.12, 0.12)  # radians
    if shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        else:
            pen.ellipse(box, outline=colour, width=round(0.38 * radius))
        return
    # Outlines are in polar coordinates: (clockwise angle from the top in revolutions, distance in radii).
    pen.polygon(
        [
            (x + radius * distance * math.sin(angle), y - radius * distance * math.cos(angle))
            for angle, distance in ((2 * math.pi * turns + rotation, distance) for turns, distance in _OUTLINES[shape])
        ],
        fill=colour,
    )


def _make_cross_outline() -> list[tuple[float, float]]:
    half_width = 0.3  # of an arm
    inner_radius = half_width * math.sqrt(2)
    outer_radius = math.hypot(half_width, 1)
    corner = math.atan2(half_width, 1) / (2 * math.pi)
    outline = []
    for arm in range(4):
        outline += [
            (arm / 4 - corner, outer_radius),
            (arm / 4 + corner, outer_radius),
            (arm / 4 + 1 / 8, inner_radius),
        ]
    return outline


_OUTLINES = {
    "square": [(1 / 8 + corner / 4, 1.2) for corner in range(4)],
    "triangle": [(corner / 3, 1.2) for corner in range(3)],
    "star": [(point / 10, 1.2 if point % 2 == 0 else 0.5) for point in range(10)],
    "cross": _make_cross_outline(),
}


def _uniform(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _jitter_colour(rng: random.Random, colour: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(level + _uniform(rng, -amount, amount)))) for level in colour)
    return red, green, blue
