"""Self-contained HTML reports: one file, no network, own drawings, light and dark."""
