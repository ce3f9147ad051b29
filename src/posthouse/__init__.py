"""Posthouse: a backup MX that people can trust with their mail."""

__version__ = "0.1.0"
