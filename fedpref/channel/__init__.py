"""How requests reach the nodes and sealed replies come back."""
