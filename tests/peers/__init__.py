"""Real peers from Debian, started for one test (or one benchmark) and surely ended after it.

`postfix` runs throw-away Postfix instances, `smtp_tools` wraps smtp-source,
smtp-sink, swaks and openssl s_client, `processes` holds what both need:
ports, bounded waiting, and an end for every process even if its starter dies.
"""
