"""Policies: what is learned, and how it acts."""
