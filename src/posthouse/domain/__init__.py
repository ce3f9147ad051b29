"""Decisions, without I/O: verdicts, recipients, MX plans, retry schedules, next-hop states."""
