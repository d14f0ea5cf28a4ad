"""Filling blanks group by group, with a cache of what is committed."""
