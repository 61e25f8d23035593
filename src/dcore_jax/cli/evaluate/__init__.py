"""A module for each benchmark of `dcore eval`: options, one call, what is printed."""
