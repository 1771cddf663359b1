"""Pairs of sites: found, merged, given features, stored and cached."""

from sitenet.pairs.pairs import PairFinder as PairFinder
from sitenet.pairs.pairs import Pairs as Pairs
from sitenet.pairs.pairs import find_pairs as find_pairs
from sitenet.pairs.pairs import pair_features as pair_features
