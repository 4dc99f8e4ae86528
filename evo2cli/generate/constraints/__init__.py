"""Constraints on generated DNA: a sequence never breaks a rule and never gets stuck.

options -> `build` -> `rules` and their patterns (`patterns`, `automaton`) -> `lookahead`, which
sequences can be completed -> `guide` (`windows`), the tokens that may come next.
"""
