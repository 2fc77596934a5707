"""Report a run: log lines, metrics, curves, pictures and an HTML page."""
