"""A whole network on this machine, real flights, a verdict."""
