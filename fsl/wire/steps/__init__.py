"""The lean stream of a session's steps: a socket that the computing thread reads and writes itself."""
