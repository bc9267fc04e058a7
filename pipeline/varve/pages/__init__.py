"""Drawing for all HTML pages: plots as SVG, tables, the skeleton of a page."""
