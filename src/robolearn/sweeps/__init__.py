"""Sweeps: reports on their runs, and what failed to launch."""
