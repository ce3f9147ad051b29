"""Engines in memory that pass the contract suite of their port."""
