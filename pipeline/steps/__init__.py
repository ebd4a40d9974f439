"""The stages of the road, as plain functions on committed storage. Who calls them, in which process, is the
engine's business.
"""
