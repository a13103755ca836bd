"""Stand-ins for the outside world that more than one room needs."""
