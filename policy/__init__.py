"""Scores or preferences -> a better adapter. So far: sampling completions of public prompts from the base model."""
