"""Square grids: the moves that the grid environments share, and small pictures of them in plain numpy.

A cell is one integer, y * size + x, with x to the right and y downward. Moves are in gymnasium's order of the frozen
lake (left, down, right, up) after a fifth action, to stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STAY, LEFT, DOWN, RIGHT, UP = range(5)
NUM_MOVES = 5

Color = tuple[int, int, int]
Image = NDArray[np.uint8]

GRID_LINE: Color = (190, 205, 220)
AGENT: Color = (214, 48, 49)
GOLD: Color = (240, 180, 40)
GREEN: Color = (46, 160, 90)
GREY: Color = (150, 155, 160)
BLACK: Color = (40, 44, 52)


def neighbours(size: int) -> tuple[tuple[int, ...], ...]:
    """For each cell the cell that each move leads to; a move off the grid leads nowhere. Indexed [cell][move]."""
    table = []
    for y in range(size):
        for x in range(size):
            left, right = max(x - 1, 0), min(x + 1, size - 1)
            up, down = max(y - 1, 0), min(y + 1, size - 1)
            table.append((y * size + x, y * size + left, down * size + x, y * size + right, up * size + x))
    return tuple(table)


def paint_cells(colors: NDArray[np.uint8], cell_px: int) -> Image:
    """A picture (rows * cell_px, cols * cell_px, 3) of one colour per cell (rows, cols, 3), with thin grid lines."""
    image = colors.repeat(cell_px, axis=0).repeat(cell_px, axis=1)
    image[::cell_px, :] = GRID_LINE
    image[:, ::cell_px] = GRID_LINE
    return image


def paint_disk(image: Image, row: int, col: int, color: Color, cell_px: int, radius: float = 0.32) -> None:
    """A disk in the middle of a cell, drawn into `image`. radius: in cells."""
    offset = np.arange(cell_px) - (cell_px - 1) / 2
    inside = offset[:, None] ** 2 + offset[None, :] ** 2 <= (radius * cell_px) ** 2
    image[row * cell_px : (row + 1) * cell_px, col * cell_px : (col + 1) * cell_px][inside] = color
