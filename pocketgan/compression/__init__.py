"""Narrower, sparser, faster versions of trained networks."""
