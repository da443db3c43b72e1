"""Commands at the top: run one simulation, sweep or search many, report, attack, and run federations."""
