"""Measurements side by side with peers; README.md holds the last tables."""
