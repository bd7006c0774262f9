"""The client's side: the only place where private data, model and privacy meet."""
