"""One run: `state` is what it is made of, `run` what is done with it."""
