"""What goes out: SMTP sessions to next hops, TLS, DNS questions."""
