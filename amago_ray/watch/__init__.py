"""What people look at: metrics, the progress display, curves."""
