"""Scores or preferences -> a better adapter: objectives on tokens, sampling, reward functions, the policy loop."""
