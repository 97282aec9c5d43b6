"""Patterns that keep a program going while parts of it fail."""
