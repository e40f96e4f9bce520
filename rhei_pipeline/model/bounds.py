"""How large a number may be that somebody gives: what clocks and databases can count."""

#: Thirty years, after which nobody waits any more; threads and clocks count up to 292.
LONGEST_SECONDS = 1_000_000_000
#: Three weeks: databases count their timeouts in milliseconds, in 32 bits.
LONGEST_TIMEOUT_SECONDS = 2_000_000
#: A thousand years, by which an instant can be moved within the calendar.
MOST_DAYS = 365_000
#: What is counted in 64 bits.
LARGEST = 2**63 - 1
