<<<<<<< HEAD
"""A real federation: devices, edge servers and the cloud as processes on machines of their own."""
=======
"""A federation of real processes: certificates, and SuperLink and SuperNodes on this machine."""
>>>>>>> local-federation
