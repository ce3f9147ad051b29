"""One running duty each. Services never call each other: they meet in storage."""
