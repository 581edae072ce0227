"""Inputs made up from what a network remembers of its own: the statistics in its BatchNormalizations."""
