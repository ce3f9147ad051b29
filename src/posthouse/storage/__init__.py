"""Engines behind the ports: the embedded spool and recipient indexes."""
