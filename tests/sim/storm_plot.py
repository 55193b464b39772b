#!/usr/bin/env python3
"""Draws what `storm --csv` prints: storm --csv | storm_plot.py > daemon/doc/reconnect-storm.svg"""
import csv
import sys

WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 190, 70, 40, 60
SERIES = (("plain", "without jitter", "#b2182b"), ("jitter", "with jitter", "#2166ac"))


def panel(rows, key, title, top, out):
    end = max(int(r["ms"]) for r in rows)
    high = max(int(r[f"{key}_{name}"]) for r in rows for name, _, _ in SERIES) or 1

    def x(ms):
        return LEFT + ms * WIDTH / end

    def y(value):
        return top + HEIGHT - value * HEIGHT / high

    out.append(f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>')
    for i in range(5):
        value = high * i // 4
        out.append(f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{LEFT + WIDTH}" y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    for second in range(0, end // 1000 + 1, 5):
        out.append(f'<text x="{x(second * 1000):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{second} s</text>')
    for name, _, color in SERIES:
        points = " ".join(f'{x(int(r["ms"])):.1f},{y(int(r[f"{key}_{name}"])):.1f}' for r in rows)
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.3"/>')


def main():
    rows = [r for r in csv.DictReader(sys.stdin) if int(r["ms"]) >= 8000]
    first = int(rows[0]["ms"])
    for r in rows:
        r["ms"] = int(r["ms"]) - first
    out = []
    panels = (
        ("arrivals", "connection attempts in 50 ms (the broker is back at 2 s)"),
        ("drops", "of them dropped by the full accept queue"),
        ("ready", "links ready, of 40,000"),
    )
    for i, (key, title) in enumerate(panels):
        panel(rows, key, title, TOP + 30 + i * (HEIGHT + GAP), out)
    for i, (_, words, color) in enumerate(SERIES):
        out.append(f'<text x="{LEFT + i * 160}" y="20" fill="{color}">{words}</text>')
    height = TOP + 30 + len(panels) * (HEIGHT + GAP)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{height}" '
          f'font-family="sans-serif" font-size="12">')
    print('<rect width="100%" height="100%" fill="white"/>')
    print("\n".join(out))
    print("</svg>")


main()
