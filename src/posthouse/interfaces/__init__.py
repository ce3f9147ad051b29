"""What comes in: the SMTP door and the control socket."""
