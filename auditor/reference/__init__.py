"""Textbook definitions in plain torch operations."""
