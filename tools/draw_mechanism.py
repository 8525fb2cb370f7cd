"""Draws docs/figures/mechanism.svg: run `python tools/draw_mechanism.py`. Readable on light and dark pages."""

from __future__ import annotations

from pathlib import Path

STYLE = """
text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px}.box{fill:#f6f8fa;stroke:#57606a}
.lower{fill:#dbeafe;stroke:#2563eb}.upper{fill:#ede9fe;stroke:#7c3aed}.kept{fill:#2563eb}.coarse{fill:#93c5fd}
.branch{fill:#fde68a;stroke:#b45309}.line{stroke:#57606a;fill:none}.go{stroke:#b45309;fill:none;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.box{fill:#161b22;stroke:#8b949e}.lower{fill:#1e3a8a;stroke:#60a5fa}
.upper{fill:#4c1d95;stroke:#a78bfa}.coarse{fill:#1d4ed8}.kept{fill:#93c5fd}.branch{fill:#78350f;stroke:#fbbf24}
.line{stroke:#8b949e}.go{stroke:#fbbf24}}
"""


def box(x: float, y: float, w: float, h: float, style: str, label: str = "") -> str:
    text = f'<text x="{x + w / 2}" y="{y + h / 2 + 4}" text-anchor="middle">{label}</text>' if label else ""
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="4" class="{style}"/>{text}'


def words(x: float, y: float, text: str, anchor: str = "start", style: str = "small") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{style}">{text}</text>'


def arrow(points: str, style: str = "line") -> str:
    return f'<polyline points="{points}" class="{style}" marker-end="url(#head)"/>'


def tree(x: float, y: float, w: float) -> str:
    """A chunk's leaves for one question: an early half coarse, the chosen quarter finest. Ticks are slots."""
    parts = []
    for start, width, style in (
        (0.0, 0.5, "coarse"),
        (0.75, 0.25, "coarse"),
        (0.5, 0.125, "kept"),
        (0.625, 0.125, "kept"),
    ):
        left, size = x + start * w, width * w
        parts.append(f'<rect x="{left}" y="{y}" width="{size - 2}" height="14" class="box"/>')
        parts += [
            f'<rect x="{left + (k + 0.5) * (size - 2) / 4}" y="{y + 2}" width="2.5" height="10" class="{style}"/>'
            for k in range(4)
        ]
    return "".join(parts)


def picture() -> str:
    out = [
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9" orient="auto"><path d="M0 0L8 4L0 8z" fill="#8b949e"/></marker>'
    ]
    out.append(words(20, 24, "context: the long past, in chunks of 1,024 tokens", style=""))
    for i in range(3):
        x = 20 + i * 150
        out.append(box(x, 36, 130, 26, "box", f"chunk {i + 1}" if i < 2 else "chunk N"))
        out.append(arrow(f"{x + 65},62 {x + 65},84"))
        out.append(box(x, 86, 130, 40, "lower", "lowest M layers"))
        out.append(arrow(f"{x + 65},126 {x + 65},150"))
        out.append(tree(x, 154, 130))
        out.append(arrow(f"{x + 65},172 {x + 65},212", "go"))
    out.append(
        '<path d="M20 214H450" class="go"/>'
        + words(20, 234, "slots: keys and values of each layer, searched by the question,")
        + words(20, 250, "fine where it matters, coarse elsewhere; 8 times fewer than tokens")
    )
    out.append(words(560, 24, "window: newest tokens, the question, the answer", style=""))
    out.append(box(560, 36, 250, 26, "box", "window"))
    out.append(arrow("685,62 685,84"))
    out.append(box(560, 86, 250, 128, "upper"))
    for k, (label, style) in enumerate(
        (("self-attention", "box"), ("cross-attention branch (trained)", "branch"), ("MLP", "box"))
    ):
        out.append(box(575, 96 + k * 34, 220, 26, style, label))
    out.append(words(820, 144, "lowest M layers:", style="small") + words(820, 158, "the same weights"))
    out.append(arrow("450,214 520,214 520,143 573,143", "go"))
    out.append(arrow("685,214 685,234"))
    out.append(box(560, 236, 250, 30, "upper", "the other layers, untouched"))
    out.append(arrow("685,266 685,286") + words(695, 284, "next token"))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 930 296" role="img" aria-label="How SharedLLM reads a long text"><style>{STYLE}</style>{"".join(out)}</svg>\n'


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs/figures/mechanism.svg").write_text(picture(), encoding="utf-8")
