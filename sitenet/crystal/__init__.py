"""Structures: read from CIFs, checked, made primitive, repeated."""

from sitenet.crystal.cif import CifError as CifError
from sitenet.crystal.cif import CifWarning as CifWarning
from sitenet.crystal.crystal import Crystal as Crystal
from sitenet.crystal.crystal import Limits as Limits
from sitenet.crystal.crystal import read_cif as read_cif
from sitenet.crystal.crystal import read_cifs as read_cifs
from sitenet.crystal.crystal import read_each as read_each
