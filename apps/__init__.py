"""What people touch: the command line, the review pages, the demo. Parse, call, report; nothing is decided here."""

from training import settle_environment

settle_environment()
