"""A federation of real processes: certificates, and SuperLink and SuperNodes on this machine."""
