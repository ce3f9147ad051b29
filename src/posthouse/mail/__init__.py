"""The vocabulary every room shares: addresses, replies, envelopes, queue ids. No I/O."""
