"""The drawings of the convention page, made from `ralib.conventions` itself so that they cannot disagree with it.

python docs/drawings.py        # writes docs/img/*.svg
"""

from __future__ import annotations

from pathlib import Path

import torch

from ralib import conventions

OUT = Path(__file__).parent / "img"
INK, SOFT, BLUE, RED = "#37474f", "#cfd8dc", "#1565c0", "#c62828"
# A flag on a pole: it has neither a mirror nor a rotation symmetry. Class-average coordinates, pixels, y up.
FLAG = torch.tensor([[-1.0, -5.0], [-1.0, 5.0], [4.0, 3.0], [-0.2, 1.2], [-0.2, -5.0]], dtype=torch.float64)
PSI_DEG, ORIGIN_XY_PX, MIRROR = 50.0, (-3.0, 1.5), True
SCALE = 14.0
PANEL = 220.0


def pose() -> conventions.PoseTriple:
    return (
        torch.tensor(PSI_DEG, dtype=torch.float64),
        torch.tensor(ORIGIN_XY_PX, dtype=torch.float64),
        torch.tensor(MIRROR),
    )


def svg(width: float, height: float, body: list[str]) -> str:
    style = f"font-family:sans-serif;font-size:13px;fill:{INK}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" style="{style}">'
    marker = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
        for name, colour in (("ink", INK), ("blue", BLUE), ("red", RED))
    )
    background = f'<rect width="{width:g}" height="{height:g}" fill="white"/>'
    return "\n".join([head, f"<defs>{marker}</defs>", background, *body, "</svg>\n"])


def text(x: float, y: float, words: str, *, anchor: str = "middle", colour: str = INK, size: int = 13) -> str:
    style = f"text-anchor:{anchor};fill:{colour};font-size:{size}px"
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str = INK, arrow: str = "", dash: str = "") -> str:
    extra = (f' marker-end="url(#{arrow})"' if arrow else "") + (f' stroke-dasharray="{dash}"' if dash else "")
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.6"{extra}/>'
    )


class Panel:
    """A square of coordinates about a centre, y up."""

    def __init__(self, left: float, top: float, title: str) -> None:
        self.left, self.top = left, top
        self.x0, self.y0 = left + PANEL / 2, top + PANEL / 2
        self.body = [
            f'<rect x="{left:g}" y="{top:g}" width="{PANEL:g}" height="{PANEL:g}" fill="#fafafa" stroke="{SOFT}"/>',
            line(left + 8, self.y0, left + PANEL - 8, self.y0, colour=SOFT, arrow="ink"),
            line(self.x0, top + PANEL - 8, self.x0, top + 8, colour=SOFT, arrow="ink"),
            text(left + PANEL - 12, self.y0 + 15, "x", size=11),
            text(self.x0 + 10, top + 16, "y", size=11),
            text(self.x0, top + PANEL + 18, title),
        ]

    def at(self, xy: torch.Tensor) -> tuple[float, float]:
        return self.x0 + SCALE * float(xy[0]), self.y0 - SCALE * float(xy[1])

    def flag(self, points: torch.Tensor, colour: str, *, ghost: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))
        look = 'fill="none" stroke-dasharray="4 3"' if ghost else f'fill="{colour}" fill-opacity="0.25"'
        self.body.append(f'<polygon points="{path}" {look} stroke="{colour}" stroke-width="1.6"/>')

    def arrow(self, start: torch.Tensor, end: torch.Tensor, colour: str, name: str, label: str) -> None:
        (x1, y1), (x2, y2) = self.at(start), self.at(end)
        self.body += [
            line(x1, y1, x2, y2, colour=colour, arrow=name),
            text((x1 + x2) / 2, min(y1, y2) - 7, label, colour=colour, size=12),
        ]

    def turn(self, angle_deg: float, label: str) -> None:
        """An arc about the centre, from the x axis by `angle_deg`, anticlockwise if positive (y up)."""
        radius = 42.0
        end = torch.deg2rad(torch.tensor(angle_deg))
        x2, y2 = self.x0 + radius * float(torch.cos(end)), self.y0 - radius * float(torch.sin(end))
        sweep = 0 if angle_deg > 0 else 1
        path = f"M{self.x0 + radius:.1f} {self.y0:.1f} A{radius} {radius} 0 0 {sweep} {x2:.1f} {y2:.1f}"
        self.body.append(f'<path d="{path}" fill="none" stroke="{RED}" stroke-width="1.6" marker-end="url(#red)"/>')
        middle = end / 2
        self.body.append(
            text(
                self.x0 + (radius + 30) * float(torch.cos(middle)),
                self.y0 - (radius + 14) * float(torch.sin(middle)) + 4,
                label,
                colour=RED,
                size=12,
            )
        )


def steps_ours() -> str:
    """Particle, shifted, rotated, mirrored: the flag passes through each step of the formula."""
    psi, origin, mirror = pose()
    inverse = conventions.invert(pose())
    particle = conventions.apply_pose(*inverse, FLAG)
    shifted = particle + origin
    rotated = conventions.rotate_xy(psi, shifted)
    final = conventions.mirror_x(rotated, mirror)
    assert torch.allclose(final, FLAG, atol=1e-9)
    panels = [
        Panel(10 + i * (PANEL + 24), 10, title)
        for i, title in enumerate(("the particle, p", "p + origin", "R(psi) (p + origin)", "M R(psi) (p + origin)"))
    ]
    panels[0].flag(particle, BLUE)
    panels[1].flag(particle, BLUE, ghost=True)
    panels[1].flag(shifted, BLUE)
    panels[1].arrow(particle[0], shifted[0], RED, "red", "origin")
    panels[2].flag(shifted, BLUE, ghost=True)
    panels[2].flag(rotated, BLUE)
    panels[2].turn(PSI_DEG, "psi")
    panels[3].flag(rotated, BLUE, ghost=True)
    panels[3].flag(final, BLUE)
    panels[3].body.append(text(panels[3].x0, 40, "mirror: x to -x", colour=RED, size=12))
    body = [item for panel in panels for item in panel.body]
    return svg(4 * PANEL + 3 * 24 + 20, PANEL + 40, body)


def steps_eman2() -> str:
    """The same particle and the same result by EMAN2's numbers: rotate, shift, mirror."""
    alpha, shift, mirror = conventions.pose_to_eman2(*pose())
    particle = conventions.apply_pose(*conventions.invert(pose()), FLAG)
    rotated = conventions.rotate_xy(-alpha, particle)
    shifted = rotated + shift
    final = conventions.mirror_x(shifted, mirror)
    assert torch.allclose(final, FLAG, atol=1e-9)
    turned = float(conventions.wrap_deg(-alpha))
    panels = [
        Panel(10 + i * (PANEL + 24), 10, title)
        for i, title in enumerate(("the particle, p", "R(-alpha) p", "R(-alpha) p + t", "M (R(-alpha) p + t)"))
    ]
    panels[0].flag(particle, BLUE)
    panels[1].flag(particle, BLUE, ghost=True)
    panels[1].flag(rotated, BLUE)
    panels[1].turn(turned, "-alpha")
    panels[2].flag(rotated, BLUE, ghost=True)
    panels[2].flag(shifted, BLUE)
    panels[2].arrow(rotated[0], shifted[0], RED, "red", "t")
    panels[3].flag(shifted, BLUE, ghost=True)
    panels[3].flag(final, BLUE)
    panels[3].body.append(text(panels[3].x0, 40, "mirror: x to -x", colour=RED, size=12))
    body = [item for panel in panels for item in panel.body]
    return svg(4 * PANEL + 3 * 24 + 20, PANEL + 40, body)


def grid(n: int, left: float, top: float, cell: float, *, marked: set[tuple[int, int]]) -> list[str]:
    """n x n pixels with (column, row) marks, row 0 at the bottom."""
    body = []
    for row in range(n):
        for column in range(n):
            fill = RED if (column, row) in marked else "white"
            opacity = 0.55 if (column, row) in marked else 1
            body.append(
                f'<rect x="{left + column * cell:g}" y="{top + (n - 1 - row) * cell:g}" width="{cell:g}" '
                f'height="{cell:g}" fill="{fill}" fill-opacity="{opacity}" stroke="{SOFT}"/>'
            )
    return body


def centre() -> str:
    """Where the origin lies in boxes of even and odd size."""
    body, cell = [], 24.0
    for n, left in ((8, 50.0), (7, 320.0)):
        top = 14.0 + (8 - n) * cell
        body += grid(n, left, top, cell, marked={(n // 2, n // 2)})
        bottom = top + n * cell
        body += [text(left + (c + 0.5) * cell, bottom + 15, str(c), size=11) for c in range(n)]
        body += [text(left - 10, top + (n - 0.5 - r) * cell + 4, str(r), size=11) for r in range(n)]
        body.append(line(left, bottom + 26, left + n * cell, bottom + 26, arrow="ink"))
        body.append(
            text(left + n * cell / 2, bottom + 42, f"x, columns; N = {n}: origin at pixel ({n // 2}, {n // 2})")
        )
    body += [line(24, 14 + 8 * cell, 24, 14, arrow="ink"), text(16, 22, "y", size=12)]
    return svg(560, 14 + 8 * cell + 56, body)


def mirror() -> str:
    """Which column of an even box goes where when mirrored: column 0 stays."""
    n, cell, left = 8, 46.0, 20.0
    body = []
    for c in range(n):
        x = c - n // 2
        fill = {0: BLUE, n // 2: RED}.get(c, "#eceff1")
        body.append(
            f'<rect x="{left + c * cell:g}" y="20" width="{cell:g}" height="40" fill="{fill}" '
            f'fill-opacity="0.35" stroke="{INK}"/>'
        )
        body += [
            text(left + (c + 0.5) * cell, 38, f"col {c}", size=11),
            text(left + (c + 0.5) * cell, 53, f"x={x}", size=11),
        ]
    for c in range(n // 2 + 1, n):
        partner = n - c
        x1, x2 = left + (c + 0.5) * cell, left + (partner + 0.5) * cell
        depth = 22 + 20 * (c - n // 2)
        body.append(
            f'<path d="M{x1:.1f} 62 Q{(x1 + x2) / 2:.1f} {62 + 2 * depth} {x2:.1f} 62" fill="none" stroke="{INK}" '
            'marker-end="url(#ink)" marker-start="url(#ink)"/>'
        )
    body.append(text(left + 0.5 * cell, 80, "stays", colour=BLUE, size=12))
    body.append(text(left + (n // 2 + 0.5) * cell, 80, "axis", colour=RED, size=12))
    return svg(2 * left + n * cell, 170, body)


def drawings() -> dict[str, str]:
    return {"centre": centre(), "mirror": mirror(), "pose": steps_ours(), "pose_eman2": steps_eman2()}


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, drawn in drawings().items():
        (OUT / f"{name}.svg").write_text(drawn)
        print(f"wrote docs/img/{name}.svg")
