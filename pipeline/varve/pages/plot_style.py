"""Colours and fonts of plots and pages, as CSS.

Colours are CSS variables (after Okabe and Ito, lighter on dark backgrounds), so a plot follows the viewer's colour
scheme. Invariant: STYLE applies to `svg.plot` only, so a plot looks the same on a page and in a file of its own.
"""

LIGHT = (
    "--ground: #fff; --raised: #f5f7f9; --ink: #1c2430; --soft: #5b6673; --line: #d5dae1; --accent: #0072b2; "
    "--heat: 0 114 178; --c0: #0072b2; --c1: #b85c00; --c2: #00795a; --c3: #a8467f; --c4: #5f4bb6; --c5: #c2353b; "
    "--c6: #8a6d00; --c7: #6b7480;"
)
DARK = (
    "--ground: #12161c; --raised: #1a2029; --ink: #e8ecf1; --soft: #a3aebb; --line: #323b47; --accent: #5cb3ec; "
    "--heat: 92 179 236; --c0: #5cb3ec; --c1: #f0a03c; --c2: #3ecfa0; --c3: #e694c4; --c4: #b3a4f5; --c5: #ff8f87; "
    "--c6: #e3cf5b; --c7: #aab4c0;"
)
NUM_COLOURS = 8
STYLE = f"""
svg.plot {{ {LIGHT} font: 13px system-ui, sans-serif; }}
@media (prefers-color-scheme: dark) {{ svg.plot {{ {DARK} }} }}
svg.plot text {{ fill: var(--ink); unicode-bidi: plaintext; }} svg.plot .soft {{ fill: var(--soft); }}
svg.plot .cell {{ font-size: 11px; }} svg.plot .on {{ fill: var(--ground); }} svg.plot .axis {{ stroke: var(--soft); }}
svg.plot .grid {{ stroke: var(--line); }} svg.plot .base {{ stroke: var(--soft); stroke-dasharray: 5 4; }}
svg.plot .mark {{ stroke: var(--ink); stroke-dasharray: 5 4; }} svg.plot .span {{ fill: var(--soft); opacity: .16; }}
svg.plot .best {{ fill: none; stroke: var(--ink); stroke-width: 1.6; }} svg.plot .heat {{ fill: rgb(var(--heat)); }}
"""
