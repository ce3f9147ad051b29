"""The replies the automaton gives by itself, each with its source."""

from __future__ import annotations

from posthouse.mail.reply import Reply

OK = Reply(250, "2.0.0", "Ok")
SENDER_OK = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Ok")
VRFY = Reply(252, "2.0.0", "Send some mail, I will try my best")
HELP = Reply(214, "2.0.0", "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS")
BARE_LINE = Reply(500, "5.5.2", "Lines must end in CR LF")
TOO_LONG = Reply(500, "5.5.2", "Line too long")  # X.5.6 is AUTH's alone (RFC 4954 §6)
UNKNOWN = Reply(500, "5.5.2", "Command not recognized")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
HELO_FIRST = Reply(503, "5.5.1", "Send EHLO or HELO first")
NEED_MAIL = Reply(503, "5.5.1", "Need MAIL command")
NESTED_MAIL = Reply(503, "5.5.1", "Nested MAIL command")
NEED_RCPT = Reply(503, "5.5.1", "Need RCPT command")
NO_VALID = Reply(554, "5.5.1", "No valid recipients")  # RFC 2920 §3.1
MIXED = Reply(503, "5.5.1", "DATA and BDAT may not be mixed")  # RFC 3030 §2
NOT_NOW = Reply(503, "5.5.1", "Not during a BDAT sequence")
TLS_TWICE = Reply(503, "5.5.1", "TLS is already active")
MANY_RCPT = Reply(452, "4.5.3", "Too many recipients")  # RFC 5321 §4.5.3.1.10
NO_ARGUMENT = Reply(501, "5.5.4", "Syntax: command takes no argument")
HELO_SYNTAX = Reply(501, "5.5.4", "Syntax: EHLO hostname")
MAIL_SYNTAX = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
BDAT_SYNTAX = Reply(501, "5.5.4", "Syntax: BDAT size [LAST]")
BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
SENDER_UTF8 = Reply(553, "5.6.7", "Address requires SMTPUTF8")  # RFC 6531 §3.5
BARE_CONTENT = Reply(550, "5.6.11", "Message holds a bare CR or LF; lines must end in CR LF")
VRFY_SYNTAX = Reply(501, "5.5.4", "Syntax: VRFY address")
NOT_IN_TRANSACTION = Reply(503, "5.5.1", "Not during a transaction")
ETRN_SYNTAX = Reply(501, "5.5.4", "Syntax: ETRN [@]domain")  # RFC 1985 §5.3
ETRN_LATER = Reply(458, "4.3.0", "Unable to queue messages now")  # RFC 1985 §5.3
