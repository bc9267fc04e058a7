"""The report of a probe: JSON, SVG plots and one HTML page."""
