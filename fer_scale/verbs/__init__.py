"""One module a verb: what `fer_scale` exports and the command line calls."""
