"""Datasets for people: a description and an HTML page."""
