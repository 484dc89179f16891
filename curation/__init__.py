"""From people's and functions' opinions to frozen training snapshots. CPU only; importing it loads nothing heavy."""
