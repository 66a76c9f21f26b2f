"""The quickstart's report: pictures side by side and the figures, as one page."""

import base64
import html
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pocketgan.files import write_whole

_GAP, _HEADING = 6, 26  # of a comparison sheet, in pixels
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }}
img {{ width: 100%; height: auto }}
table {{ border-collapse: collapse; margin-bottom: 2rem }}
caption {{ font-weight: bold; text-align: left }}
th, td {{ border-bottom: 1px solid #8886; padding: .25rem 1.5rem .25rem 0; text-align: left }}
</style></head><body>
<h1>{title}</h1>
<p>{text}</p>
<img src="data:image/png;base64,{picture}" alt="{alternative}">
{tables}
</body></html>
"""


def comparison_sheet(columns: dict[str, list[Image.Image]], side: int = 192) -> Image.Image:
    """Lay pictures side by side, one row a photo, with the columns' titles above.

    Args:
        columns: Title to pictures; every column has as many.
        side: Width and height of a cell in pixels; pictures are scaled into it.
    """
    boxes = sheet_boxes(len(next(iter(columns.values()))), len(columns), side)
    _, _, right, bottom = boxes[-1][-1]
    sheet = Image.new("RGB", (right + _GAP, bottom + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns.items()):
        draw.text((boxes[0][column][0], 5), title, fill="black", font=ImageFont.load_default(14))
        for row, picture in enumerate(pictures):
            cell = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(cell, boxes[row][column])
    return sheet


def sheet_boxes(rows: int, columns: int, side: int) -> list[list[tuple[int, int, int, int]]]:
    """Left, top, right and bottom of each cell of a comparison sheet, by rows."""
    step = side + _GAP
    return [
        [
            (_GAP + column * step, _HEADING + row * step, (column + 1) * step, _HEADING + row * step + side)
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def write_report(file: Path, sheet: Image.Image, title: str, text: str, tables: dict[str, dict[str, str]]) -> None:
    """Write a page that needs no other file.

    Args:
        file: The HTML file.
        sheet: The picture on top.
        title: The page's heading.
        text: A paragraph under it.
        tables: Caption to rows of name and value.
    """
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    rendered = "\n".join(
        f"<table><caption>{html.escape(caption)}</caption>"
        + "".join(
            f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
            for name, value in rows.items()
        )
        + "</table>"
        for caption, rows in tables.items()
    )
    page = _PAGE.format(
        title=html.escape(title),
        text=html.escape(text),
        picture=base64.b64encode(buffer.getvalue()).decode(),
        alternative="Photos, the teacher's edits and the GAN's edits side by side",
        tables=rendered,
    )
    write_whole(file, page.encode())
