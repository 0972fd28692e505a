"""HTTP at the edge: parse, call one function, answer."""
