"""Bytes to events and back, without I/O: SMTP server and client automata."""
