"""What people touch: the command line, the review pages, the demo. Parse, call, report; nothing is decided here."""
