"""Runs a real federation: devices, edge servers and the cloud as processes on machines of their own."""
