"""Pairs of sites: found, merged, given features, stored and cached."""

from sitenet.pairs.features import pair_features as pair_features
from sitenet.pairs.finder import PairFinder as PairFinder
from sitenet.pairs.finder import find_pairs as find_pairs
from sitenet.pairs.pairs import Pairs as Pairs
