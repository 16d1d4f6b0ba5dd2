"""The tree of a run as SVG, for the page: the same layout as the picture, colours from the page's style."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from ..search.run import Run
from ..types import Picture
from .layout import LINE_HEIGHT, Layout, Link, Node

SMALL = 256
"""Pictures up to this side are embedded as they are; larger ones are reduced, as JPEG."""


def data_url(picture: Picture, most: int) -> str:
    """The picture as a data URL, not larger than `most` pixels a side unless it is small anyway."""
    if max(picture.size) <= SMALL:
        kind, settings = "png", {"optimize": True}
    else:
        picture = picture.copy()
        picture.thumbnail((most, most), Image.Resampling.LANCZOS)
        kind, settings = "jpeg", {"quality": 88}
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def tree_svg(run: Run, layout: Layout) -> str:
    """An `<svg>` element. Each candidate links to `#c<id>`."""
    parts = [f'<svg class="tree" xmlns="http://www.w3.org/2000/svg" width="{layout.width:.0f}" '
             f'height="{layout.height:.0f}" viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" role="img" '
             'aria-label="the tree of all candidates">']
    parts += [f'<text class="note" x="{x:.0f}" y="13">{escape(words)}</text>' for x, words in layout.headings]
    parts += [_link(link) for link in layout.links]
    parts += [_node(run, node, layout) for node in layout.nodes]
    return "\n".join([*parts, "</svg>"])


def _link(link: Link) -> str:
    x, y = link.points[-1]
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (*link.points[:-1], (x - 10, y)))
    kind = "way" if link.chosen else "link"
    return (f'<polyline class="{kind}" points="{points}"/>'
            f'<path class="{kind} tip" d="M{x - 5:.1f} {y:.1f} l-8 -5 v10z"/>')


def _node(run: Run, node: Node, layout: Layout) -> str:
    candidate, (width, height) = node.candidate, layout.thumb
    x, y = node.x, node.y
    accepted = "accepted" if candidate.accepted else ""
    around = node.thick / 2
    kind = " ".join(part for part in ("frame", accepted, "chosen" if node.chosen else "") if part)
    parts = [
        f'<a href="#c{candidate.id}">',
        f'<image x="{x:.0f}" y="{y:.0f}" width="{width}" height="{height}" '
        f'href="{data_url(run.picture(candidate.id), SMALL)}"/>',
        f'<rect class="{kind}" x="{x - around:.1f}" y="{y - around:.1f}" width="{width + node.thick}" '
        f'height="{height + node.thick}" rx="3" stroke-width="{node.thick}"/>',
    ]
    if accepted:
        parts.append(f'<g transform="translate({x + width - 9:.0f} {y + 9:.0f})"><circle class="disc" r="11"/>'
                     '<path class="tick" d="M-5 0 L-1.5 4 L5 -4"/></g>')
    under = y + height + 19
    parts += [f'<text class="score {accepted}" x="{x:.0f}" y="{under:.0f}">{node.score_text}</text>',
              f'<text class="note" x="{x + width:.0f}" y="{under:.0f}" text-anchor="end">{node.label}</text>']
    lines = [("audit", node.audit)] if node.audit else []
    lines += [("told" if node.told else "note", line) for line in node.text]
    parts += [f'<text class="small {kind}" x="{x:.0f}" y="{under + 18 + i * LINE_HEIGHT:.0f}">{escape(line)}</text>'
              for i, (kind, line) in enumerate(lines)]
    return "".join([*parts, "</a>"])
