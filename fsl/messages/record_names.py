"""The names of records in the messages between cloud and nodes."""

PLAN, ARRAYS, METRICS, CONFIG = "plan", "arrays", "metrics", "config"
SETUP, PART, REMARKS, MEMBER, LOST, LINE = "setup", "part", "remarks", "member", "lost", "line"
ARRIVALS = "arrivals"
