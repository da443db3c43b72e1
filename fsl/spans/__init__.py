"""Where a run's time goes: spans around the methods of a round, put there from outside and taken off again."""
