"""A society of agents: who is near whom, what they say and remember, and when a world ends."""
