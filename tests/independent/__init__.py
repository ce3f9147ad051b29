"""A primary written from the protocol's text alone: no line here imports Posthouse.

It is what somebody else would write: plain Python, its own reading of every
rule. `roster` makes and reads roster files and deltas, `granter` answers over
HTTPS. Where the two sides disagree, one of them has misread the text.
"""
